#!/usr/bin/env bash
# The main job on a machine that has only Python and git: a 256 MiB image of random data, read by a VM through its
# disk path under each of the three placements, and compared with what sha256sum says of the file.
#
#   bash examples/first_boot.sh [MIB]
#
# Makes .venv in the checkout if there is none. Works in a temporary folder, and leaves no process and no file there.
# PYTHON names the interpreter to make .venv with; VMBUS_EMU_VENV names another environment to use.
set -euo pipefail

mib=${1:-256}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VMBUS_EMU_VENV:-$root/.venv}

fail() {
    echo "first_boot: $1" >&2
    exit 1
}

[[ $mib =~ ^[1-9][0-9]{0,4}$ ]] || fail "the size is a number of MiB, for example 256"

# -- set up ---------------------------------------------------------------------------------------------

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 or newer; install one, or name it: PYTHON=/path/to/python3 bash examples/first_boot.sh"
}

if [[ -n ${PYTHON:-} ]] && ! new_enough "$PYTHON"; then
    fail "needs Python 3.11 or newer; $PYTHON is not"
fi
if [[ ! -x $venv/bin/python ]]; then
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv)"
    echo "making $venv"
    "$python" -m venv "$venv" || { rm -rf "$venv"; fail "could not make $venv; python's message is above"; }
fi
new_enough "$venv/bin/python" || fail "needs Python 3.11 or newer; remove $venv, which has an older one"
if ! "$venv/bin/vmbus-emu" --version >/dev/null 2>&1; then
    echo "installing vmbus-emu and its five dependencies into $venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root" ||
        fail "pip could not install vmbus-emu; its message is above"
fi

# -- the main job ---------------------------------------------------------------------------------------

vmbus_emu=$venv/bin/vmbus-emu
name=first-boot-$$
work=$(mktemp -d)
clean_up() {
    "$vmbus_emu" down --name "$name" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

seconds() { "$venv/bin/python" -c 'import time; print(f"{time.monotonic():.3f}")'; }
since() { "$venv/bin/python" -c "import time; print(f'{time.monotonic() - $1:.1f} s')"; }

head -c "${mib}M" /dev/urandom >"$work/disk.img"
expected=$(sha256sum "$work/disk.img" | cut -d ' ' -f 1)
echo "image         ${mib} MiB of random data, sha256 ${expected:0:16}..."

failures=0
for arch in microkernel disaggregated monolithic; do
    "$vmbus_emu" up --name "$name" --arch "$arch" --disk "$work/disk.img" >"$work/up.txt" 2>&1 ||
        fail "$arch did not come up: $(tail -n 1 "$work/up.txt")"
    begin=$(seconds)
    sum=$("$vmbus_emu" exec --name "$name" vm1 -- sha256 disk0 | cut -d ' ' -f 1) || sum="no sum"
    took=$(since "$begin")
    if [[ $sum == "$expected" ]]; then same="same sum in the VM"; else same="DIFFERENT: $sum"; failures=1; fi
    if "$vmbus_emu" exec --name "$name" vm1 -- ping -c 1 vm2 >/dev/null; then
        ping="ping ok"
    else
        ping="PING FAILED"
        failures=1
    fi
    down="down"
    "$vmbus_emu" down --name "$name" >/dev/null || { down="NOT DOWN"; failures=1; }
    printf '%-13s %s (%s), %s, %s\n' "$arch" "$same" "$took" "$ping" "$down"
done
[[ $failures == 0 ]] || fail "see the words in capitals above"
echo "try next:     ${vmbus_emu#"$PWD"/} up"
