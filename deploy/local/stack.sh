# shellcheck shell=bash
# Sourced by up, down and status: where the local stack keeps its state, and its own processes.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly STATE=$LOCAL/.state

stop_binary() { # NAME
  none_owned_by "$STATE/$1" && return
  step "stopping $1"
  signal_owned CONT "$STATE/$1"
  signal_owned TERM "$STATE/$1"
  poll 30 none_owned_by "$STATE/$1" || kill_owned "$STATE/$1"
}
