# shellcheck shell=bash
# Sourced by the scripts beside it: progress, private ports, and processes that are provably ours.

LOCAL=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly LOCAL
readonly PORT_REGISTRY=/tmp/penstock-ports

step() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }

# Prints the comment at the top of the script, and ends, if the arguments ask for help.
help_if_asked() { # ARGUMENT...
  local argument
  for argument in "$@"; do
    if [[ $argument == -h || $argument == --help ]]; then
      sed -n '2,/^[^#]/{ s/^# \{0,1\}//p; }' "$0"
      exit 0
    fi
  done
}

fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

poll() { # SECONDS COMMAND...: until it succeeds
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

# Detached from the caller: own session, no terminal, none of its open files; works in the folder of its log.
# Sets $launched to its pid.
launch() { # OWNER LOG [NAME=VALUE]... COMMAND...
  local owner=$1 log=$2 fd
  shift 2
  (
    for fd in /proc/"$BASHPID"/fd/*; do
      fd=${fd##*/}
      ((fd < 3)) || exec {fd}>&-
    done
    # Both a low and a boundless limit hurt: the Erlang machine sizes tables by it.
    ulimit -n 65536 2>/dev/null || true
    cd "${log%/*}" || exit
    exec setsid env -i PATH="$PATH" HOME="$HOME" LC_ALL=C.UTF-8 PENSTOCK_OWNER="$owner" "$@"
  ) </dev/null >>"$log" 2>&1 &
  launched=$!
  disown "$launched" # or bash would report its end
  until owns "$owner" "$launched" || ! kill -0 "$launched" 2>/dev/null; do sleep 0.01; done
}

# Found by the mark that `launch` leaves in their environment, and their children's: unlike a pid
# file it survives a crash at any point, and a reused pid never carries it.
owned_by() { # OWNER
  { grep -lzxF -- "PENSTOCK_OWNER=$1" /proc/[0-9]*/environ 2>/dev/null || true; } | cut -d/ -f3
}

owns() { # OWNER PID
  grep -qszxF -- "PENSTOCK_OWNER=$1" "/proc/$2/environ"
}

none_owned_by() { [[ -z $(owned_by "$1") ]]; }

signal_owned() { # SIGNAL OWNER
  local pid
  for pid in $(owned_by "$2"); do
    kill -s "$1" "$pid" 2>/dev/null || true
  done
}

killed() { # OWNER
  signal_owned KILL "$1"
  none_owned_by "$1"
}

kill_owned() { # OWNER
  poll 10 killed "$1" || fail "processes of $1 do not end: $(owned_by "$1" | xargs)"
}

# Private ports, one per NAME, chosen once: FOLDER/ports keeps them for every later start.
choose_ports() { # FOLDER NAME...
  local folder=$1 name port registry
  shift
  [[ ! -s $folder/ports ]] || return 0
  mkdir -m 1777 "$PORT_REGISTRY" 2>/dev/null || true
  exec {registry}<"$PORT_REGISTRY"
  flock "$registry"
  forget_unused_ports
  for name in "$@"; do
    # The ephemeral range starts at 32768: an outgoing connection there can take a server's port while it is
    # down.
    until port=$((20000 + RANDOM % 12000)) && port_is_free "$port"; do :; done
    echo "$folder" >"$PORT_REGISTRY/$port"
    echo "$name=$port"
  done >"$folder/ports.new"
  mv "$folder/ports.new" "$folder/ports"
  exec {registry}<&-
}

port() { # FOLDER NAME
  local line
  line=$(grep "^$2=" "$1/ports")
  echo "${line#*=}"
}

forget_unused_ports() {
  local reserved folder
  for reserved in "$PORT_REGISTRY"/*; do
    [[ -O $reserved ]] || continue
    folder=$(<"$reserved")
    grep -qs "=${reserved##*/}$" "$folder"/ports{,.new} || rm -f "$reserved"
  done
}

port_is_free() {
  [[ ! -e $PORT_REGISTRY/$1 ]] &&
    ! grep -qsE "^ *[0-9]+: [0-9A-F]+:$(printf %04X "$1") " /proc/net/tcp /proc/net/tcp6
}

start_servers() { # FOLDER
  local rabbitmq mongod failed=0
  "$LOCAL/servers" start rabbitmq "$1/rabbitmq" & rabbitmq=$!
  "$LOCAL/servers" start mongod "$1/mongod" & mongod=$!
  wait "$rabbitmq" || failed=1
  wait "$mongod" || failed=1
  return "$failed"
}

require_cargo() {
  # A shell opened before rustup was installed does not have it on its PATH yet.
  PATH=$PATH:$HOME/.cargo/bin
  command -v cargo >/dev/null || fail "cargo is missing; please install Rust (rustup) first"
}

# What cargo compiles for checks and tests. The whole workspace each time: with fewer packages it would choose other features,
# and compile most of it again. Without jemalloc, which takes as long to build as all of ours.
# shellcheck disable=SC2034 # used by those who source this
readonly WORKSPACE=(--locked --workspace --no-default-features --features worker/srv)

# Builds, with one line of progress instead of one for each crate. What cargo says is in the log.
compile() { # LOG CARGO_ARGUMENT...
  local log=$1 part
  shift
  step "compiling (the first time takes some minutes)"
  if ! CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=80 cargo build "$@" 2>&1 | tee "$log" |
    while IFS= read -r -d $'\r' part; do
      [[ ! -t 1 || ! $part =~ [0-9]+/[0-9]+ ]] || printf '\r[%3ds] compiling: %s parts' "$SECONDS" "${BASH_REMATCH[0]}"
    done; then
    tr '\r' '\n' <"$log" | grep -vE '^ *(Building|Compiling|Download|Updating|Locking)|^$' | tail -n 60 >&2
    fail "cargo build failed; all that it said is in $log"
  fi
  [[ ! -t 1 ]] || printf '\r\033[K'
  step "compiled"
}

target_dir() {
  cargo metadata --locked --no-deps --format-version 1 |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])'
}
