#!/bin/sh
# Make the environment that the Makefile's targets run in: ensure_venv.sh FOLDER [PYTHON]. One that is there, with the
# right Python and pip, is left alone; a wrong or broken one is made anew.
set -eu
venv="$1" python="${2:-}" wanted="3.11"

is_right() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; }

is_whole() { [ -x "$1/bin/python" ] && is_right "$1/bin/python" && "$1/bin/python" -m pip --version > /dev/null 2>&1; }

if is_whole "$venv"; then exit 0; fi
if [ -e "$venv" ]; then
    if [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        echo "$venv is no virtual environment: give another folder with VENV=FOLDER" >&2
        exit 1
    fi
    echo "$venv has no Python $wanted or newer with pip: making it anew"
    rm -rf "$venv"
fi
if [ -n "$python" ]; then set -- "$python"; else set -- python3 python3.14 python3.13 python3.12 python3.11; fi
for one in "$@"; do
    # Without its module venv, as Debian ships it, a Python cannot make a whole one.
    if is_right "$one" && "$one" -m venv "$venv" > /dev/null 2>&1 && is_whole "$venv"; then
        echo "created $venv with $("$one" --version)"
        exit 0
    fi
    rm -rf "$venv"
done
if [ -z "$python" ] && command -v uv > /dev/null && uv venv -q --seed --python ">=$wanted" "$venv" && is_whole "$venv"; then
    echo "created $venv with uv and $("$venv/bin/python" --version)"
    exit 0
fi
rm -rf "$venv"
echo "drpo_graph needs Python $wanted or newer, with the module venv. $1 is:" \
    "$("$1" --version 2>&1 || true). Install one and say PYTHON=python3.12, or install uv." >&2
exit 1
