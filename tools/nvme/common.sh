# shellcheck shell=bash
# What the scripts here share: plain words for errors, consent before a device is written to, a results folder, fio's figures.

tool=$(basename "$0")
say() { [ -n "${quiet:-}" ] || echo "$tool: $*" >&2; }
stop() { echo "$tool: $1" >&2; exit "${2:-1}"; }     # what is wrong and what to do; 2: wrong usage
misused() { stop "$1; '$tool --help' lists the options" 2; }

has() { command -v "$1" >/dev/null 2>&1; }
needs() { # PROGRAM PACKAGE
    has "$1" || stop "$1 is not installed: apt-get install $2"
}

bytes_of() { # SIZE: 4096, 512k, 2g, 1t
    local number=${1%[kKmMgGtT]}
    case $number in '' | *[!0-9]*) misused "'$1' is no size (4096, 512k, 2g, 1t)" ;; esac
    case ${1#"$number"} in
        '') echo "$number" ;;
        [kK]) echo $((number << 10)) ;;
        [mM]) echo $((number << 20)) ;;
        [gG]) echo $((number << 30)) ;;
        *) echo $((number << 40)) ;;
    esac
}

number_of() { # VALUE OPTION: a whole number above zero
    case $1 in '' | *[!0-9]* | 0) misused "$2: '$1' is no number above 0" ;; esac
    echo "$1"
}

commas() { tr ',' ' ' <<<"$1"; }

results_begin() { # FOLDER or nothing: makes it and prints its path; never one that has something in it
    local folder=${1:-$tool-$(date -u +%Y%m%dT%H%M%SZ)}
    mkdir -p "$folder" 2>/dev/null || stop "the results folder $folder cannot be made"
    [ -z "$(ls -A "$folder")" ] || stop "the results folder $folder is not empty: give another with --out"
    (cd "$folder" && pwd)
}

# Devices --------------------------------------------------------------------------------------------------------------

device_bytes() { blockdev --getsize64 "$1" 2>/dev/null || stop "$1: its size cannot be read; are you root?"; }

device_user() { # what uses the device or a part of it: empty if nothing does
    local name mounts
    name=$(basename "$(readlink -f "$1")")
    mounts=$(lsblk -nro MOUNTPOINTS "$1" 2>/dev/null | grep -v '^$' | tr '\n' ' ')
    if [ -n "$mounts" ]; then
        echo "mounted on $mounts"
    elif [ -n "$(ls -A "/sys/class/block/$name/holders" 2>/dev/null)" ]; then
        echo "part of $(ls -A "/sys/class/block/$name/holders") (RAID, LVM or encryption)"
    elif grep -q "^$(readlink -f "$1") " /proc/swaps; then
        echo "a swap device"
    elif ! flock --exclusive --nonblock "$1" true 2>/dev/null; then
        echo "locked by another program"
    fi
}

# The device named in full a second time is the consent: no prompt that a script answers with yes, no -f that sits in a history.
device_may_be_destroyed() { # DEVICE CONSENTED...
    local device=$1 given content user
    shift
    content=$(lsblk -nro NAME,FSTYPE,LABEL "$device" 2>/dev/null | awk 'NF > 1' | tr '\n' ';')
    for given in "$@"; do
        [ "$given" = "$device" ] || continue
        user=$(device_user "$device")
        [ -z "$user" ] || stop "$device is $user: it will not be written to, whatever the consent"
        return 0
    done
    stop "$device is a device, and everything on it would be lost (now on it: ${content:-nothing that is known}).
If you want that, say so with its full name: --destroy-data-on=$device" 2
}

block_name() { # PATH: the whole disk below a directory or device, as /sys/class/block names it; empty if there is none
    local source name
    if [ -b "$1" ]; then source=$1; else source=$(df --output=source "$1" 2>/dev/null | tail -1); fi
    source=$(readlink -f "$source" 2>/dev/null)
    [ -b "$source" ] || return 0
    name=$(lsblk -nsro NAME,TYPE "$source" 2>/dev/null | awk '$2 == "disk" || $2 == "loop" { last = $1 } END { print last }')
    echo "${name:-$(basename "$source")}"
}

# fio ------------------------------------------------------------------------------------------------------------------

fio_engine() { # io_uring where the kernel lets us; else the oldest way that has a queue
    local probe
    probe=$(mktemp -d) || exit 1
    if fio --name=probe --directory="$probe" --ioengine=io_uring --rw=write --bs=4k --size=4k --output=/dev/null \
        >/dev/null 2>&1; then
        echo io_uring
    else
        echo libaio
    fi
    rm -rf "$probe"
}

fio_version() { fio --version 2>/dev/null | sed 's/^fio-//'; }

per_second() { # LOG MEAN TARGET: fio's bandwidth log as "target,second,bw_bytes"; a run of under a second has no line in it
    awk -F', *' -v target="$3" -v mean="$2" '
        { printf "%s,%.0f,%.0f\n", target, $1 / 1000, $2 * 1024 }
        END { if (NR == 0) printf "%s,0,%.0f\n", target, mean }' "$1"
}

machine_busy() { # seconds of CPU that the whole machine has spent since boot, and what was stolen from it
    awk -v hz="$(getconf CLK_TCK)" '/^cpu / { printf "%.2f\n", ($2 + $3 + $4 + $7 + $8 + $9) / hz }' /proc/stat
}
