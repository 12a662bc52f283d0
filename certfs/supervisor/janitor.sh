#!/bin/sh
# The janitor: detaches what supervisor and server have left when they cannot. See janitor.py.
#
#   sh janitor.sh UNMOUNT LIFE USER
#
# UNMOUNT is a command line to which the place is added, LIFE the descriptor of the read end of the server's life pipe,
# USER the number of the user whose mounts these are. Standard input has one line for each thing to know:
#
#   watch KIND SERVERS PLACES DEVICE...   from now on; SERVERS is PID:STARTED,... and PLACES PLACE,... as in mountinfo
#   finish                                detach everything now, and what is covered later
#
# shellcheck disable=SC2162 # the octal escapes of /proc/self/mountinfo are read with backslashes as they are, by read -r
trap '' HUP INT TERM
# Names in the tables of the kernel are bytes, of no encoding.
export LC_ALL=C
unmount=$1 life=$2 user=$3
if [ "$user" = 0 ]; then
    PATH=/usr/sbin:/usr/bin:/sbin:/bin
else
    PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
fi

# Print the table of mounts, but for lines that are longer than any of ours: any user can make one of many megabytes.
table() {
    awk 'length < 65536' /proc/self/mountinfo
}

# Whether another mount lies upon the mount $1, at the same place $2.
covered() {
    # A mount below this one has its number as the second field. Nearly always there is none, and reading the table line
    # by line, a byte for each system call, takes longer than all else.
    case $mounts in *" $1 "[0-9]*:*) ;; *) return 1 ;; esac
    while read -r _ beneath _ _ there _; do
        [ "$beneath $there" = "$1 $2" ] && return 0
    done <<END
$mounts
END
    return 1
}

# Whether another mount lies over a directory above the mount $1, or above one that this is in: no path leads there.
out_of_reach() {
    child=$1
    while :; do
        up='' place=''
        while read -r number parent _ _ there _; do
            [ "$number" != "$child" ] || { up=$parent place=$there && break; }
        done <<END
$mounts
END
        [ "$up" ] && [ "$up" != "$child" ] || return 1
        while read -r number parent _ _ there _; do
            [ "$parent" = "$up" ] && [ "$number" != "$child" ] || continue
            case $place in "${there%/}"/*) return 0 ;; esac
        done <<END
$mounts
END
        child=$up
    done
}

# Whether a line of the mount table, of a device $1, at the place $2, with the end $3, is to be detached: certfs's, made
# by this user or by root, and known by its device or, where only what is dead is detached ($4), by its place. The maker
# stands in the last field, which is the kernel's; the others hold what their user has chosen.
ours() {
    case $3 in *" - $kind "*) ;; *) return 1 ;; esac
    case ,${3##* }, in *",user_id=$user,"* | *,user_id=0,*) ;; *) return 1 ;; esac
    case " $devices " in *" $1 "*) return 0 ;; esac
    [ "$4" = dead ] && case ",$places," in *",$2,"*) return 0 ;; esac
    return 1
}

# Detach what is ours and in view; with "dead", only what does not answer: the kernel gives the number of a mount that
# is gone to the next one, somebody else's. Sets hidden if something is covered, and devices to what is left.
sweep() {
    round=0 found=yes
    while [ "$found" ] && [ $round -lt 64 ]; do
        round=$((round + 1)) found='' hidden='' gone='' remain=''
        mounts=$(table)
        while read -r id _ device _ point rest; do
            ours "$device" "$point" " $rest" "$1" || continue
            if covered "$id" "$point"; then hidden=yes remain="$remain $device" && continue; fi
            case $point in
            *\\*) # only then: the paths are dead while processes start
                point=$(printf '%s' "$point" | sed 's/\\\([0-7]\{3\}\)/\\0\1/g')
                point=$(printf '%b.' "$point")
                ;;
            *) point=$point. ;
            esac
            # statfs(2) is never answered from a cache of the kernel's. What is dead at one place is so at all.
            case "$1 $gone" in
            dead*" $device "*) ;;
            dead*) stat -f -- "${point%.}" >/dev/null 2>&1 && continue ;;
            esac
            gone="$gone $device "
            if $unmount "${point%.}"; then
                found=yes
            else
                remain="$remain $device"
                ! out_of_reach "$id" || hidden=yes
            fi
        done <<END
$mounts
END
        # What has gone leaves its number to the next mount, whoever's.
        [ "$1" = dead ] || devices=$remain
    done
}

read -r _ kind servers places devices
{
    read -r _
    sleep 1
    sweep dead
} <"/proc/self/fd/$life" &
finish=''
while [ ! "$finish" ] && read -r word first second third rest; do
    case $word in
    watch) kind=$first servers=$second places=$third devices=$rest ;;
    finish) finish=yes ;;
    esac
done

# Set state to that of the process $1 that was started at $2; to nothing if there is none. Its name, in parentheses, may
# hold parentheses and line feeds. No process is started for it: plain files are waited for.
state_of() {
    started=$2 stat='' state=''
    [ -r "/proc/$1/stat" ] || return 0
    { while IFS= read -r line; do stat="$stat$line "; done <"/proc/$1/stat"; } 2>/dev/null
    # shellcheck disable=SC2086 # its fields
    set -- ${stat##*) }
    [ "${20}" = "$started" ] && state=$1
}

# Whether a server can still start a supervisor: one that runs, or one that was stopped only a moment ago.
hope() {
    running='' stopped=''
    rest=$servers,
    while [ "$rest" ]; do
        server=${rest%%,*} rest=${rest#*,}
        state_of "${server%:*}" "${server#*:}"
        case $state in
        '' | Z | X) ;;
        T | t) stopped="$stopped ${server%:*}" ;;
        *) running=yes ;;
        esac
    done
    [ "$running" ] && patience=$([ $rounds -lt 200 ] && echo 100 || echo 10)
    patience=$((patience - 1))
    [ "$running" ] || { [ "$stopped" ] && [ $patience -gt 0 ]; }
}

rounds=0 patience=100 stopped=''
while [ ! "$finish" ] && hope; do
    [ $rounds -lt 200 ] && pause=0.1 || pause=1
    [ $rounds -lt 10 ] && pause=0.01 # a server that was killed with its supervisor may not be dead yet
    rounds=$((rounds + 1))
    sleep "$pause"
done

exec >/dev/null 2>&1
if [ "$stopped" ]; then
    # shellcheck disable=SC2086 # several processes
    kill -9 $stopped
    # Only of what is at one of our places: a number that is free is given to the next mount, whoever's.
    while read -r _ _ device _ point rest; do
        case ",$places," in *",$point,"*) ours "$device" "$point" " $rest" '' ;; *) continue ;; esac &&
            echo 1 >"/sys/fs/fuse/connections/${device#*:}/abort"
    done <<END
$(table)
END
fi
sweep ${finish:-dead}
while [ "$hidden" ]; do
    findmnt --poll --first-only --nocanonicalize --timeout 1000 || sleep 0.2
    sweep ${finish:-dead}
done
