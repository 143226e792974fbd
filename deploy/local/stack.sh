# shellcheck shell=bash
# Sourced by up, down, status and env: where the local stack keeps its state, its settings, and its own
# processes.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly STATE=$LOCAL/.state

# The settings of both binaries, one NAME=VALUE a line; what `up` was given comes last, and so wins.
stack_settings() {
  # shellcheck disable=SC1091
  source "$STATE/rabbitmq/env" && source "$STATE/mongod/env"
  cat <<END
AMQP_URL=$AMQP_URL
AMQP_MANAGEMENT_URL=$AMQP_MANAGEMENT_URL
MONGO_URI=$MONGO_URI
DB_NAME=penstock_faster
VIP_MONGO_URI=$MONGO_URI
VIP_DB_NAME=penstock_vip
HOST=127.0.0.1
PORT=$(port "$STATE" INGEST)
SPOOL_DIR=$STATE/spool
END
  cat "$STATE/settings"
}

stop_binary() { # NAME
  none_owned_by "$STATE/$1" && return
  step "stopping $1"
  signal_owned CONT "$STATE/$1"
  signal_owned TERM "$STATE/$1"
  poll 30 none_owned_by "$STATE/$1" || kill_owned "$STATE/$1"
}
