# shellcheck shell=bash
# Sourced by servers: which RabbitMQ it runs. The machine's own if that is RabbitMQ 4 or newer; else Debian
# 13's packages, unpacked into a folder that only the server itself sees, as its /usr. PENSTOCK_RABBITMQ=next:
# the newest that Debian has, in the same way.

case ${PENSTOCK_RABBITMQ:=stable} in
  stable) readonly RABBITMQ_SUITE=trixie ;;
  next) readonly RABBITMQ_SUITE=forky ;; # gets newer: remove the folder to fetch it again
  *) fail "PENSTOCK_RABBITMQ is either next or not set" ;;
esac
readonly CACHED_RABBITMQ=$CACHE/rabbitmq-$RABBITMQ_SUITE
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# What the scripts of RabbitMQ and Erlang call, besides what the package depends on.
readonly RABBITMQ_PACKAGES=(rabbitmq-server dash bash coreutils sed grep mawk libc-bin hostname procps util-linux)

rabbitmq_usr() { # the folder that is its /usr; fails if there is none yet
  if [[ $PENSTOCK_RABBITMQ == stable ]] && is_rabbitmq_4 /usr; then
    echo /usr
  elif [[ -d $CACHED_RABBITMQ ]]; then
    echo "$CACHED_RABBITMQ/usr"
  else
    return 1
  fi
}

is_rabbitmq_4() { # USR
  [[ $(echo "$1"/lib/rabbitmq/lib/rabbitmq_server-*) =~ rabbitmq_server-([0-9]+) ]] && ((BASH_REMATCH[1] >= 4))
}

rabbitmq_is_packaged() {
  [[ $PENSTOCK_RABBITMQ == stable ]] &&
    (source /etc/os-release && [[ $ID == debian && ${VERSION_ID:-0} -ge 13 ]]) 2>/dev/null
}

# Sets $rabbitmq to the command that runs one of RabbitMQ's programs. It becomes that program: same pid and
# environment, and the mount is gone when the last process that sees it has ended.
# shellcheck disable=SC2034
find_rabbitmq() { # PROGRAM
  local usr
  usr=$(rabbitmq_usr) || fail "no RabbitMQ 4; run: $LOCAL/servers install"
  rabbitmq=("$1")
  [[ $usr != /usr ]] || return 0
  find_unshare
  rabbitmq=("${unshare[@]}" bash -euc "$(declare -f with_usr); with_usr \"\$@\"" - "$usr" "$1")
}

with_usr() { # USR COMMAND...
  if [[ $PWD == /usr/* ]]; then # a server's folder there has to stay in sight
    mkdir -p "$1/${PWD#/usr/}"
    mount --rbind "$PWD" "$1/${PWD#/usr/}"
  fi
  mount --rbind "$1" /usr
  exec "${@:2}"
}

# Sets $unshare to the command that gives a program mounts of its own: as root, or in a user namespace.
find_unshare() {
  unshare=(unshare --mount)
  ! "${unshare[@]}" true 2>/dev/null || return 0
  unshare+=(--user --map-root-user)
  ! "${unshare[@]}" true 2>/dev/null || return 0
  fail "no program may have mounts of its own here; please install RabbitMQ 4 or newer"
}

fetch_rabbitmq() {
  local apt=$CACHE/apt new=$CACHED_RABBITMQ.new package
  find_unshare
  if [[ ! -e $KEYRING ]] || ! command -v apt-get >/dev/null; then fail "please install RabbitMQ 4 or newer"; fi
  step "fetching RabbitMQ of Debian $RABBITMQ_SUITE (80 MB) into $CACHED_RABBITMQ"
  rm -rf "$apt" "$new"
  mkdir -p "$apt"/{lists,archives}/partial "$new"
  echo "deb [signed-by=$KEYRING] $(debian_mirror) $RABBITMQ_SUITE main" >"$apt/sources.list"
  : >"$apt/status" # nothing is installed: what RabbitMQ needs is fetched, too
  apt_get "$apt" update
  apt_get "$apt" install --download-only --yes --no-install-recommends "${RABBITMQ_PACKAGES[@]}"
  for package in "$apt"/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x --no-same-owner --no-same-permissions -C "$new"
  done
  ln -sf mawk "$new/usr/bin/awk" # which the package would have update-alternatives do
  rm -rf "$apt"
  mv "$new" "$CACHED_RABBITMQ"
}

# The mirror that this machine uses.
debian_mirror() {
  local mirror
  mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)
  echo "${mirror:-http://deb.debian.org/debian}"
}

apt_get() { # FOLDER ARGUMENT...: with nothing of the machine's sources, lists and packages
  apt-get -qq -o Dir::Etc::sourcelist="$1/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
    -o Dir::State::lists="$1/lists" -o Dir::State::status="$1/status" \
    -o Dir::Cache="$1" -o Dir::Cache::archives="$1/archives" -o APT::Keep-Downloaded-Packages=true \
    -o APT::Sandbox::User=root -o Acquire::Languages=none "${@:2}" >/dev/null
}
