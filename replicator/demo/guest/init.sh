#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The guest of demo and tests, as process 1 of an initramfs. What it does is on the kernel's
# command line: replicator.role=writer | verify | probe.
#
# writer   Makes ext4 on both disks where they are blank and mounts them. Every 100 ms appends the
#          next record to disk A, fsync, then the same record to disk B, fsync, and only then says
#          "REC n" on the console. So at any moment B holds what A holds, or one record less.
#          Commands, one a line, on the console:
#            rubbish   overwrites all records on both disks with random bytes, says
#                      "RUBBISH DONE", and goes on damaging them at the same pace
#            stop      stops writing: "STOPPED n"        start     goes on: "STARTED n"
#            big n     writes 256 KiB to disk B in one request: "BIG n DONE" or "BIG n FAILED"
#            unmount   unmounts, and writes nothing any more: "UNMOUNTED"
#            poweroff  unmounts and powers off
# verify   Replays the journals, checks both filesystems and each record, says one line
#          "VERIFY key=value ..." (its reader is verdict.py) and powers off.
# probe    Says "GUEST-ALIVE" and powers off: proves that the accelerator works.
#
# Whatever goes wrong ends in "GUEST-FAILED reason" and a power-off, never in a silent hang.
#
# A record is one line of 128 bytes, newline included:
#   REC number(10) seconds.micros(17) 14 random words(5 each) checksum(10)
# The checksum is the polynomial sum = (sum * 65599 + field) mod (2^31 - 1) over number, seconds,
# micros (with a 1 in front: no octal) and the words. Both the shell (64-bit integers) and awk
# (doubles, 53 bits) are exact on it, so writing a record forks only for the two fsyncs: emulated
# without KVM, a fork costs 5 ms.

RECORD_BYTES=128
INTERVAL_US=100000
MULTIPLIER=65599
MODULUS=2147483647
FILE_A=/a/records
FILE_B=/b/records

say() { echo "$*"; }

power_off() {
    sync
    poweroff -f
    while :; do sleep 60; done # process 1 must not return while the machine goes down
}

fail() {
    say "GUEST-FAILED $*"
    power_off
}

prepare_kernel() {
    mount -t proc proc /proc
    mount -t devtmpfs dev /dev
    mount -t sysfs sys /sys
    stty -echo -icanon min 1 time 0 icrnl </dev/console
    for module in /modules/*.ko; do
        insmod "$module" || fail "insmod $module"
    done
    ln -s /proc/mounts /etc/mtab
}

start_guest_agent() { # where the guest has both the program and the channel
    local port
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name" 2>/dev/null)" = org.qemu.guest_agent.0 ] || continue
        [ -x /sbin/qemu-ga ] || fail "no /sbin/qemu-ga for the guest agent's channel"
        # What the agent runs when it is to shut the guest down.
        printf '#!/bin/sh\nsync\nexec poweroff -f\n' >/sbin/shutdown
        chmod 755 /sbin/shutdown
        /sbin/qemu-ga --method virtio-serial --path "/dev/${port##*/}" \
            --statedir /run --pidfile /run/qemu-ga.pid &
    done
}

role() {
    for word in $(cat /proc/cmdline); do
        case $word in replicator.role=*) say "${word#*=}" ;; esac
    done
}

# ---- filesystems -------------------------------------------------------------------------------

is_ext4() { [ "$(dd if="$1" bs=1 skip=1080 count=2 2>/dev/null | hexdump -v -e '1/1 "%02x"')" = 53ef ]; }
is_blank() { [ -z "$(dd if="$1" bs=64k count=1 2>/dev/null | tr -d '\000')" ]; }

mount_for_writing() { # DEVICE DIRECTORY
    [ -b "$1" ] || fail "no disk $1"
    if ! is_ext4 "$1"; then
        # Never format what may be a damaged filesystem: it is evidence.
        is_blank "$1" || fail "$1 holds neither ext4 nor nothing"
        /sbin/mke2fs -q -F -t ext4 -b 4096 "$1" || fail "mke2fs $1"
    fi
    mount -t ext4 "$1" "$2" || fail "mount $1"
}

size_of() { stat -c %s "$1" 2>/dev/null || echo 0; }

# ---- writer ------------------------------------------------------------------------------------

append() { # RECORD FILE: it is safe on the disk when this returns
    echo "$1" >>"$2" && sync "$2" || fail "write $2"
}

make_record() { # NUMBER: leaves the line in $record
    local now=$EPOCHREALTIME sum=$1 word text
    local seconds=${now%.*} micros=${now#*.}
    sum=$(((sum * MULTIPLIER + seconds) % MODULUS))
    sum=$(((sum * MULTIPLIER + 1$micros) % MODULUS))
    text=$((10000000000 + $1))
    record="REC ${text#1} $now"
    for word in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do
        word=$((10000 + RANDOM))
        sum=$(((sum * MULTIPLIER + word) % MODULUS))
        record="$record $word"
    done
    text=$((10000000000 + sum))
    record="$record ${text#1}"
}

catch_up() { # after a crash B may lack the last record of A
    local a b
    a=$(size_of $FILE_A)
    b=$(size_of $FILE_B)
    if [ "$b" -eq $((a - RECORD_BYTES)) ]; then
        append "$(tail -c $RECORD_BYTES $FILE_A)" $FILE_B
    elif [ "$a" -ne "$b" ]; then
        fail "disk A holds $a bytes of records, disk B $b"
    fi
    number=$((a / RECORD_BYTES))
}

write_record() {
    make_record $((number + 1))
    append "$record" $FILE_A
    append "$record" $FILE_B
    number=$((number + 1))
    say "REC $number"
}

overwrite_all() {
    for file in $FILE_A $FILE_B; do
        dd if=/dev/urandom of=$file bs="$(size_of $file)" count=1 conv=notrunc,fsync 2>/dev/null ||
            fail "overwrite $file"
    done
}

overwrite_one() {
    for file in $FILE_A $FILE_B; do
        dd if=/dev/urandom of=$file bs=$RECORD_BYTES count=1 seek=$((RANDOM % number)) \
            conv=notrunc,fsync 2>/dev/null || fail "overwrite $file"
    done
}

write_big() { # NUMBER: a repeat of the same order is answered and not done again
    if [ "$1" != "$big" ]; then
        big=$1
        # A write of data that fails leaves the filesystem writable.
        big_said="BIG $1 FAILED"
        dd if=/dev/urandom of=/b/big bs=256k count=1 oflag=direct conv=notrunc 2>/dev/null &&
            big_said="BIG $1 DONE"
    fi
    say "$big_said"
}

obey() { # COMMAND
    case $1 in
    rubbish)
        overwrite_all
        activity=overwrite_one
        say "RUBBISH DONE"
        ;;
    stop)
        paused=yes
        say "STOPPED $number"
        ;;
    start)
        paused=
        say "STARTED $number"
        ;;
    big\ *) write_big "${1#big }" ;;
    unmount)
        paused=yes
        [ "$unmounted" ] || umount /a /b || fail "umount"
        unmounted=yes
        say "UNMOUNTED"
        ;;
    poweroff)
        umount /a /b
        power_off
        ;;
    '') ;;
    *) say "UNKNOWN-COMMAND" ;;
    esac
}

wait_or_obey() { # MICROSECONDS: until a command comes, but no longer
    local milliseconds command=
    milliseconds=$((1000 + ($1 > 0 ? $1 : 0) / 1000)) # a 1 in front keeps the leading zeroes
    read -r -t "0.${milliseconds#1}" command && obey "$command"
}

write_for_ever() {
    local due now
    mount_for_writing /dev/vda /a
    mount_for_writing /dev/vdb /b
    catch_up
    start_guest_agent
    activity=write_record
    paused=
    big=
    unmounted=
    say "GUEST-READY $number"
    due=${EPOCHREALTIME/./}
    while :; do
        [ "$paused" ] || $activity
        due=$((due + INTERVAL_US))
        now=${EPOCHREALTIME/./}
        # Late by more than one interval: the lost turns are not made up for.
        [ $((now - due)) -lt $INTERVAL_US ] || due=$now
        wait_or_obey $((due - now))
    done
}

# ---- verify ------------------------------------------------------------------------------------

check_filesystem() { # DEVICE DIRECTORY: says clean, errors or unmountable
    local state=errors
    # The first run replays the journal as after any power cut (0 or 1); then not one complaint.
    if /sbin/e2fsck -p "$1" >/dev/null 2>&1 || [ $? -eq 1 ]; then
        /sbin/e2fsck -f -n "$1" >/dev/null 2>&1 && state=clean
    fi
    mount -t ext4 "$1" "$2" 2>/dev/null || state=unmountable
    say $state
}

check_records() { # FILE SUFFIX: says records_X, last_X, bad_X and shapeless_X
    [ -e "$1" ] || : >"$1"
    awk -v size="$(size_of "$1")" -v x="$2" -v m=$MULTIPLIER -v p=$MODULUS -v bytes=$RECORD_BYTES '
        # Busybox takes digits behind a leading zero for octal ones.
        function number(text) { sub(/^0+/, "", text); return text + 0 }
        $1 == "REC" { shaped++ }
        length($0) == bytes - 1 && $1 == "REC" && NF == 18 && index($3, ".") == 11 {
            sum = number($2)
            sum = (sum * m + substr($3, 1, 10)) % p
            sum = (sum * m + ("1" substr($3, 12))) % p
            for (i = 4; i < 18; i++) sum = (sum * m + $i) % p
            if (sum == number($18) && number($2) > last) { good++; last = number($2) }
        }
        END {
            slots = int((size + bytes - 1) / bytes)
            shapeless = slots > shaped ? slots - shaped : 0
            printf "records_%s=%d last_%s=%d bad_%s=%d shapeless_%s=%d",
                x, good, x, last, x, slots - good, x, shapeless
        }' "$1"
}

verify() {
    local line a b
    line="fsck_a=$(check_filesystem /dev/vda /a) fsck_b=$(check_filesystem /dev/vdb /b)"
    a=$(check_records $FILE_A a)
    b=$(check_records $FILE_B b)
    say "VERIFY $line $a $b"
    umount /a /b 2>/dev/null
}

# ---- process 1 ---------------------------------------------------------------------------------

prepare_kernel
case $(role) in
writer) write_for_ever ;;
verify) verify ;;
probe) say "GUEST-ALIVE" ;;
*) fail "no replicator.role on the kernel command line" ;;
esac
power_off
