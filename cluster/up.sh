#!/bin/sh
# Starts Ray on machines that you can reach by ssh, and ends it again.
#
#   cluster/up.sh HEAD HOST[:POOL]...           # the head, then the others, by address
#   cluster/up.sh --down HEAD HOST[:POOL]...
#
# POOL is the label that a recipe asks for (runtime.worker_labels.pool=train): train, memory, spot, or
# a name of yours. Give addresses of the network that the machines share and nobody else is on; gradients
# cross it in clear. On every machine there is the same checkout with its .venv (`make venv`), at
# RAPID_HOME, and GPUs are found by Ray.
#
#   RAPID_HOME   where that is on the machines; rapid-dist in the home folder by default
#   RAPID_SSH    the ssh to use, with its options: "ssh -i key -o BatchMode=yes"
#   RAPID_ENV    further environment of all nodes: "AWS_REGION=... AWS_ENDPOINT_URL=..."
#
# Every machine gets the cluster's token and RAPID_ENV in files of its own, 0600, through ssh's standard
# input: command lines are everybody's to read. It is waited for until Ray says that it has started. Ray
# is ended by the process that was started here: `ray stop` would end everybody's.
set -eu

SSH=${RAPID_SSH:-ssh -o BatchMode=yes -o ConnectTimeout=15}
HOME_THERE=${RAPID_HOME:-rapid-dist}
TOKEN=$HOME/.ray/auth_token
DOWN=no
if [ "${1:-}" = --down ]; then
    DOWN=yes
    shift
fi
if [ $# -eq 0 ]; then
    echo "up.sh: name a host: cluster/up.sh [--down] HEAD HOST[:POOL]..." >&2
    exit 2
fi
HEAD=${1%%:*}

if [ $DOWN = yes ]; then
    LAST_FIRST=
    for host in "$@"; do LAST_FIRST="$host $LAST_FIRST"; done
    for host in $LAST_FIRST; do
        # The group that `setsid` made: ray start --block and all that it has started.
        $SSH "${host%%:*}" "cd $HOME_THERE && test -f ray.pid && kill -TERM -\$(cat ray.pid) && rm ray.pid || true" < /dev/null
        echo "${host%%:*} down"
    done
    exit 0
fi

if [ ! -s "$TOKEN" ]; then
    mkdir -p -m 700 "$HOME/.ray"
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$TOKEN")
fi
chmod 600 "$TOKEN"

# Of a node, told HOST POOL OPTIONS...: starts Ray there, and waits until it has started.
NODE=$(cat << 'END'
host=$1 pool=$2
shift 2
if [ -f ray.pid ] && kill -0 "$(cat ray.pid)" 2> /dev/null; then
    echo "Ray runs there already: cluster/up.sh --down first." >&2
    exit 1
fi
rm -f ray.pid ray.log
set -a
. "$HOME/.ray/environment"
PATH=$PWD/.venv/bin:$PATH
RAY_AUTH_MODE=token
RAY_USAGE_STATS_ENABLED=0
RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9
RAY_JOB_STOP_WAIT_TIME_S=120
RAY_health_check_failure_threshold=5
RAY_health_check_period_ms=2000
RAY_health_check_timeout_ms=4000
# The interface with the address that the others know: Gloo would guess by host name.
GLOO_SOCKET_IFNAME=$(ip -o -4 addr | awk -v address="$host/" 'index($4, address) == 1 {print $2; exit}')
NCCL_SOCKET_IFNAME=$GLOO_SOCKET_IFNAME
set +a
(setsid nohup sh -c 'echo $$ > ray.pid; exec ray start "$@"' sh --block --node-ip-address="$host" \
    --labels="pool=$pool" "$@" > ray.log 2>&1 < /dev/null &)
until grep -q 'Ray runtime started' ray.log 2> /dev/null; do
    sleep 0.5
    [ ! -s ray.pid ] || kill -0 "$(cat ray.pid)" 2> /dev/null || { cat ray.log >&2; exit 1; }
done
END
)

start() { # HOST POOL OPTIONS...
    host=$1
    { cat "$TOKEN"; echo; printf '%s\n' "${RAPID_ENV:-}"; } | $SSH "$host" "umask 077; mkdir -p .ray; \
rm -f .ray/auth_token .ray/environment; IFS= read -r token; printf %s \"\$token\" > .ray/auth_token; \
cat > .ray/environment; \
chmod 600 .ray/auth_token .ray/environment"
    printf '%s\n' "$NODE" | $SSH "$host" "cd $HOME_THERE && sh -s -- $*" || {
        echo "up.sh: Ray did not start on $host; what it said is above." >&2
        exit 1
    }
    echo "$host up, pool=$2"
}

start "$HEAD" head --head --port=6379 --dashboard-host=127.0.0.1 --num-cpus=0
shift
for host in "$@"; do
    pool=${host#*:}
    [ "$pool" != "$host" ] || pool=cpu
    start "${host%%:*}" "$pool" "--address=$HEAD:6379"
done
echo "A tunnel, to leave open: $SSH -N -L 8265:127.0.0.1:8265 $HEAD"
