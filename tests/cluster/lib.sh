# shellcheck shell=bash
# What the scripts of the local cluster share: where things lie, how a step is shown, which Docker client to use.
# Sourced, never run. Knows nothing of what the scripts do.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
CACHE=${EXO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/exo-operator}    # outside the repo: survives a fresh clone
CLUSTER_NAME=${CLUSTER_NAME:-exo}
STATE=$CACHE/clusters/$CLUSTER_NAME                                 # of this cluster only; `down` removes it
ENGINE_DIR=$CACHE/engine                                            # of an engine of our own, if there is one
mkdir -p "$CACHE/logs"

say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$1" >&2; shift; for line in "$@"; do printf '       %s\n' "$line" >&2; done; exit 1; }

# step WHAT COMMAND...: runs the command with its output in a log; says what runs and how long it took. A terminal
# sees the log's last line as it grows, a CI log a line a minute. The command runs in the foreground, so that
# Ctrl-C reaches it, and in a subshell of its own `set -e`: never put `step` itself in a condition.
step() {
  local what=$1 start=$SECONDS log rc; shift
  log=$CACHE/logs/$(tr -cs '[:alnum:]\n' - <<<"$what").log
  if [[ -t 2 ]]; then printf '  … %s' "$what" >&2; else say "  … $what"; fi
  : >"$log"
  local shell=$BASHPID shower
  show_progress "$what" "$log" "$start" "$shell" &
  shower=$!
  set +e; (set -e; "$@") >"$log" 2>&1; rc=$?; set -e
  kill "$shower" 2>/dev/null; wait "$shower" 2>/dev/null || true
  if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
  if [[ $rc = 0 ]]; then say "  ✓ $what ($((SECONDS-start)) s)"; return; fi
  say "  ✗ $what (failed after $((SECONDS-start)) s, exit $rc). The end of $log:"
  tail -n 25 "$log" | sed 's/^/    | /' >&2
  exit "$rc"
}

show_progress() { # ends by itself when the step's shell has gone
  local what=$1 log=$2 start=$3 parent=$4 width line n=0
  trap '' INT
  width=$(tput cols 2>/dev/null || echo 100)
  exec 8>&- >/dev/null              # an inherited lock would outlive the step by a moment
  while kill -0 "$parent" 2>/dev/null; do
    sleep 1 2>/dev/null; n=$((n+1))     # it may outlive us by a moment, and must hold no pipe open
    if [[ -t 2 ]]; then
      line=$(tail -c 400 "$log" | tr '\r' '\n' | sed '/^\s*$/d' | tail -n 1 | tr -dc '[:print:]')
      line="  … $what ($((SECONDS-start)) s) $line"
      printf '\r\033[K%s' "${line:0:$((width-1))}" >&2
    elif (( n % 60 == 0 )); then say "  … $what ($((SECONDS-start)) s)"; fi
  done
}

key_of() { sha256sum "$@" | awk '{print $1}' | sha256sum | cut -c1-12; }    # of the contents, whatever the paths

# Where the programs that we build lie. The key is what they are made of: a new pin gets a new folder.
programs_folder() { echo "$CACHE/programs-$(key_of "$here"/programs/{go.mod,go.sum,build,pause/main.go})"; }

# What node-image makes: a change of anything inside gets a new name.
node_image() {
  echo "localhost/exo-kind-node:$(key_of "$here"/programs/{go.mod,go.sum,build,pause/main.go} "$here"/node/* "$here"/{node-image,debian-root})"
}

# with_lock FILE COMMAND...: one at a time. Only the command's own shell holds the lock, so a killed one frees it.
with_lock() {
  local file=$1; shift
  mkdir -p "$(dirname "$file")"
  ( flock -n 8 || { say "  … waiting for another run to finish ($file)"; flock 8; }; "$@" ) 8>"$file"
}

# install_packages PACKAGE...: what Debian has and this machine lacks.
install_packages() {
  command -v apt-get >/dev/null || die "this needs the packages: $*" "Install them by hand: the machine has no apt-get."
  [[ $EUID = 0 ]] || die "this needs the Debian packages: $*" "Install them (sudo apt-get install $*) or run as root."
  # A package's daemon must not start by itself: what we start, we also end.
  local policy=/usr/sbin/policy-rc.d mark='# exo-operator: no daemon starts while its package is installed'
  if [[ ! -e $policy ]] || grep -qF "$mark" "$policy"; then
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"; chmod +x "$policy"
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -qy --no-install-recommends "$@" || { apt-get update -q && apt-get install -qy --no-install-recommends "$@"; }
}

# The Docker engine in use, if one answers: ours if it runs, else whatever `docker` finds.
find_engine() {
  if docker -H "unix://$ENGINE_DIR/docker.sock" version >/dev/null 2>&1; then
    export DOCKER_HOST=unix://$ENGINE_DIR/docker.sock
  else
    docker version >/dev/null 2>&1
  fi
}

# docker_build ARG...: with BuildKit. A client from 23 on needs the buildx plugin for it, Debian 12's has it built in.
docker_build() {
  local client
  for client in docker /usr/bin/docker; do
    if DOCKER_BUILDKIT=1 "$client" build --help 2>/dev/null | grep -q -- --secret; then
      DOCKER_BUILDKIT=1 "$client" build "$@"; return
    fi
  done
  die "no Docker client here can build with BuildKit" "Install the buildx plugin: apt-get install docker-buildx"
}

# pull IMAGE: false where no container registry answers within 20 s, or where EXO_REGISTRY=none says not to ask. What the
# engine itself is told of mirrors and proxies counts, so the engine is asked, not the network.
pull() {
  [[ ${EXO_REGISTRY:-} != none ]] || return 1
  local log=$CACHE/logs/pull.log pid
  say "  … $1: pull"
  timeout 900 docker pull "$1" >"$log" 2>&1 &
  pid=$!
  for _ in $(seq 100); do
    # The first word about the image itself: the registry has answered.
    if grep -q 'Pulling from' "$log" || [[ ! -d /proc/$pid ]]; then
      wait "$pid" && return
      break
    fi
    sleep 0.2
  done
  kill "$pid" 2>/dev/null || true
  say "  · it cannot be pulled: $(tail -n 1 "$log" | cut -c1-160)"
  return 1
}
