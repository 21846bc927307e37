#!/bin/sh
# Writes new random passwords and keys for compose.yaml into docker/secrets (or the folder that is named), one file each:
# for both Redis servers the users of redis/users.acl, and for each of these a URL with its password.
# It changes nothing that is there already.
set -eu
umask 077
here=$(dirname "$0")
folder=${1:-$here/secrets}
if [ -e "$folder" ]; then
    echo "$folder is there already: remove it for new passwords, or keep what is in it" >&2
    exit 1
fi
new() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
sha256() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }

made=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$made"' EXIT
# Redis takes no comments there
rules=$(grep '^user ' "$here/redis/users.acl")
for server in broker cache; do
    printf '%s\n' "$rules" | while read -r rule; do
        case $rule in
        *'>PASSWORD '*)
            name=${rule#user }
            name=${name%% *}
            password=$(new)
            rule="${rule%%>PASSWORD *}#$(sha256 "$password") ${rule#*>PASSWORD }"
            # of the user forecache-api: api_broker_url
            printf 'redis://%s:%s@%s:6379/0' "$name" "$password" "$server" >"$made/${name##*-}_${server}_url"
            ;;
        esac
        printf '%s\n' "$rule"
    done >"$made/${server}_users"
done
new >"$made/dashboard_password"
for client in client prometheus; do
    key=fc_$(new)
    printf %s "$key" >"$made/${client}_key"
    printf 'sha256:%s' "$(sha256 "$key")" >"$made/${client}_key_hash"
done
# the folder is this user's alone; its files are mounted into containers whose users are others
chmod 0444 "$made"/*
mv "$made" "$folder"
trap - EXIT
