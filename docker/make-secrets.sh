#!/bin/sh
# Writes new random passwords and keys for compose.yaml into docker/secrets (or the folder that is named), one file each.
# It changes nothing that is there already.
set -eu
umask 077
folder=${1:-$(dirname "$0")/secrets}
if [ -e "$folder" ]; then
    echo "$folder is there already: remove it for new passwords, or keep what is in it" >&2
    exit 1
fi
new() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
sha256() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }

made=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$made"' EXIT
for server in broker cache; do
    password=$(new)
    # the second user lets a health check ask whether the server lives, and nothing else
    printf 'user default on #%s ~* &* +@all\nuser health on nopass resetkeys resetchannels -@all +ping\n' \
        "$(sha256 "$password")" >"$made/${server}_users"
    printf 'redis://:%s@%s:6379/0' "$password" "$server" >"$made/${server}_url"
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
