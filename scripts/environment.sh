# Sourced by scripts/demo, scripts/test and scripts/check: one Python environment, made and kept up to date.
#
#   prepare EXTRAS    makes sure that $venv holds this checkout with these extras, as constraints.txt has them
#
# State inside the environment:
#   .hawkeye-made             we made it, so we may remove it
#   .hawkeye-installing       an installation is under way, or was broken off
#   .hawkeye-stamp-EXTRAS     what was installed; the same content means there is nothing to do

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${HAWKEYE_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
torch_index=

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 2; }

# Takes --torch-index URL (or =URL) out of the arguments; the rest are left in the array `rest`.
parse() {
  rest=()
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --torch-index)
        [ $# -ge 2 ] || die "--torch-index needs the address of an index; see --help"
        torch_index=$2; shift 2 ;;
      --torch-index=*) torch_index=${1#*=}; shift ;;
      --) shift; rest+=("$@"); break ;;
      *) rest+=("$1"); shift ;;
    esac
  done
}

find_python() {
  local candidate
  for candidate in ${HAWKEYE_PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
  die "no usable Python: needs 3.11 or newer with its venv module (on Debian: the packages python3 and python3-venv);
  name one with HAWKEYE_PYTHON=/path/to/python3"
}

fingerprint() { # of what an installation depends on; the checkout's place counts, for it is installed in place
  "$venv/bin/python" - "$root" "$1" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
parts = [sys.argv[1], sys.argv[2], sys.version]
parts += [(root / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PY
}

everything=compress,serve,scale,dev

installed() { # whether the environment holds these extras
  local extras
  [ -x "$venv/bin/python" ] && [ ! -e "$venv/.hawkeye-installing" ] || return 1
  for extras in "$1" "$everything"; do
    [ "$(cat "$venv/.hawkeye-stamp-$extras" 2>/dev/null)" = "$(fingerprint "$extras")" ] && return 0
  done
  return 1
}

prepare() {
  local extras=$1 python
  if installed "$extras"; then return; fi
  if [ -e "$venv/.hawkeye-installing" ] && [ -e "$venv/.hawkeye-made" ]; then
    say "The last installation in $venv was broken off: starting afresh."
    rm -rf -- "$venv"
  fi
  if [ ! -x "$venv/bin/python" ]; then
    [ -z "$(ls -A "$venv" 2>/dev/null)" ] || die "$venv is not a Python environment and not empty;
  name another with HAWKEYE_VENV, or remove it"
    python=$(find_python)
    mkdir -p -- "$venv"
    touch -- "$venv/.hawkeye-made" "$venv/.hawkeye-installing"
    "$python" -m venv "$venv"
  fi
  touch -- "$venv/.hawkeye-installing"
  rm -f -- "$venv"/.hawkeye-stamp-*
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check install --constraint "$root/constraints.txt")
  [ -t 2 ] || pip+=(--quiet)
  say "Installing hawkeye[$extras] into $venv (once)."
  case $extras in
    *compress*)
      if [ -n "$torch_index" ]; then
        # Only these two come from there, without what they need: that comes from the usual index, with the rest.
        "${pip[@]}" --no-deps --index-url "$torch_index" torch torchvision ||
          die "PyTorch could not be installed from the index given with --torch-index; see the lines above"
      elif ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
        say "PyTorch's ordinary build brings about 6 GB; --torch-index makes that ten times smaller, see --help."
      fi ;;
  esac
  "${pip[@]}" --editable "$root[$extras]" || die "the installation failed, see the lines above; start again to go on"
  fingerprint "$extras" >"$venv/.hawkeye-stamp-$extras"
  rm -f -- "$venv/.hawkeye-installing"
}

prepare_browser() { # Chromium and its driver, for tests with a real browser, where nobody has to be asked
  if command -v chromedriver >/dev/null && { command -v chromium || command -v chromium-browser ||
    command -v google-chrome; } >/dev/null; then return; fi
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0 # the tests then say what is missing
  say "Installing chromium and chromium-driver with apt-get (once)."
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    chromium chromium-driver; } >/dev/null || say "They could not be installed; tests that need them say so."
}

environment_help() {
  cat <<'HELP'
  --torch-index URL     take PyTorch from this package index, such as PyTorch's own index of CPU builds (the
                        "Start locally" page of pytorch.org shows its address: choose Pip and CPU). That makes the
                        installation about ten times smaller. Counts only when something is installed.
  -h, --help            show this

Environment:
  HAWKEYE_VENV          the Python environment to make or to use again (default: .venv in the checkout)
  HAWKEYE_PYTHON        the Python 3.11 or newer to make it with (default: python3)
HELP
}
