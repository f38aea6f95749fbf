# The supervisor of one node of a local run; its process id is the id of its session.
#
# Arguments: the run's directory, the rank, then the command as an argument vector.
# Standard input is alive-<rank>, already locked by whoever started this: the lock is held from before
# this process existed until it ends, and nothing else inherits it.  Nothing here depends on the
# daemon, which may die and come back meanwhile, nor on the job's environment.
#
# A stop is the file stop-requested (its first word: when to kill, in hundredths of a second of
# /proc/uptime) followed by SIGTERM to this process.

run=$1 rank=$2
shift 2
exec 9<&0 </dev/null

how=ended code=143 woken='' term='' found=''

# Sends signal $1 (0: none) to every live process of this session except this one, named in `found`.
# A session id is not given away while it has members, so a match is ours.
signal_session() {
    found=''
    for stat in /proc/[0-9]*/stat; do
        { read -r line <"$stat"; } 2>/dev/null || continue
        pid=${line%% *}
        set -- "$1" ${line##*) }  # the signal, then: state, parent, group, session, ...
        [ "$5" = "$$" ] && [ "$pid" != "$$" ] && [ "$2" != Z ] && [ "$2" != X ] || continue
        kill "-$1" "$pid" 2>/dev/null && found="$found $pid"
    done
}

kill_due() {
    read -r kill_at _ <"$run/stop-requested"
    read -r up _ </proc/uptime
    [ "${up%.*}${up#*.}" -ge "$kill_at" ]
}

# A later request may bring the kill forward, so the file is read again each time.  The command may
# have ended while children of it still write their checkpoint: they have the whole grace.
stop_session() {
    # Until our child has become the command it would take the signal as this shell does.
    while line=''; { read -r line <"/proc/$main/cmdline"; } 2>/dev/null; [ "$line" = "$self" ]; do
        sleep 0.01 9>&-
    done
    # All are halted while the signal goes round: else one may fork and die, and its child, missed by
    # the round, would never be asked.
    halted=none
    while signal_session STOP; [ "$found" != "$halted" ]; do
        halted=$found
    done
    [ -n "$found" ] || return 0  # all had ended by themselves
    how=stopped
    signal_session TERM
    signal_session CONT
    while signal_session 0; [ -n "$found" ] && ! kill_due; do
        sleep 0.2 9>&-
    done
    signal_session KILL
}

# The stop is done inside the trap: a flag looked at before `wait` could be set just after the look.
# Not entered twice, because the functions above keep their state in variables of the whole shell.
terminated() {
    trap 'woken=1' TERM
    if [ -e "$run/stop-requested" ]; then stop_session; else term=1; fi
    woken=1
    trap terminated TERM
}

# Caught, not ignored: a command inherits an ignored signal and could never trap it itself.
trap 'term=1' TERM
trap 'woken=1' HUP INT QUIT
read -r self <"/proc/$$/cmdline"

# Only now may a stop be signalled; one requested before is seen here.
echo "$$" >&9
if [ -e "$run/stop-requested" ]; then
    how=stopped
elif (set -C; : >"$run/started-$rank") 2>/dev/null; then
    "$@" 9>&- &
    main=$!
    trap terminated TERM
    [ ! -e "$run/stop-requested" ] || terminated  # it may have come before there was anything to stop
    wait "$main"
    code=$?
    while [ -n "$woken" ]; do  # a trap ran: `code` may be the signal's and not the command's
        woken=
        if kill -0 "$main" 2>/dev/null; then
            wait "$main"
            code=$?
        else
            wait "$main"
            again=$?
            [ "$again" -eq 127 ] || code=$again  # 127: this shell has answered already
        fi
    done
else
    exit 0  # started before: never twice
fi

# What the command left behind in the session ends with it.
trap 'term=1' TERM
tries=0
while signal_session KILL; [ -n "$found" ] && [ "$tries" -lt 100 ]; do
    tries=$((tries + 1))
    sleep 0.1 9>&-
done

# SIGTERM without a request is the machine going down: a command killed with it did not fail by
# itself, and without an exit file the run counts as lost with its host.
[ -n "$term" ] && [ "$code" -gt 128 ] && [ ! -e "$run/stop-requested" ] && exit 0

# A full disk delays the outcome; it does not lose it.
until echo "$code $(date +%s%3N) $how" >"$run/exit-$rank.new" && mv -f "$run/exit-$rank.new" "$run/exit-$rank"; do
    [ -d "$run" ] || exit 0
    sleep 1 9>&-
done
