#!/bin/sh
# Takes out of an environment (its folder is the argument) what no process of Forecache reads: a fifth of its size.
set -eu
cd "$1"/lib/python3*/site-packages

# tests, sources, headers
find . -type d -name tests -prune -exec rm -rf {} +
rm -rf pyarrow/include pyarrow/src
find . -type f \( -name '*.a' -o -name '*.pyx' -o -name '*.pxi' -o -name '*.pxd' -o -name '*.h' -o -name '*.c' -o -name '*.pyi' \) -delete

# Arrow's RPC
rm -f pyarrow/libarrow_flight.so* pyarrow/libarrow_python_flight.so* pyarrow/_flight.* pyarrow/flight.py

# a wheel holds no links, so that Arrow's libraries lie there three times, under each of their names
for whole in pyarrow/libarrow_python*.so.*.*.*; do
    for name in "${whole%.*.*}" "${whole%.*.*.*}"; do
        ln -sf "$(basename "$whole")" "$name"
    done
done

# symbols for debuggers; not of numpy's libraries, whose headers the tool that packed them has moved
find . -name '*.so*' -type f -not -path './numpy*' -exec strip --strip-unneeded {} +

# bytecode of what is imported seldom, if ever; all other bytecode stays, since a read-only container cannot make it
find pandas pygments prompt_toolkit wcwidth -type d -name __pycache__ -prune -exec rm -rf {} +
