# Sourced by scripts/demo and scripts/test: a private virtual environment in .invsolve-env/ inside the checkout.
# No environment of the user is read or changed. Settings, all optional:
#   PYTHON=...                the Python (3.11 or newer) to make the environment with
#   INVSOLVE_TORCH_INDEX=...  package index for torch, such as https://download.pytorch.org/whl/cpu (no GPU: a smaller download)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
env_dir=$root/.invsolve-env
marker=$env_dir/.made-by-invsolve-scripts

unset VIRTUAL_ENV PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIRE_VIRTUALENV
# A user's pip configuration may ask for --user, which a virtual environment refuses.
export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

version_of() { # "3.12" for a Python that starts, nothing otherwise
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() { # sets $python
  if [ -n "${PYTHON:-}" ]; then
    new_enough "$PYTHON" || fail "PYTHON=$PYTHON has version $(version_of "$PYTHON" || echo unknown); Python 3.11 or newer is needed"
    python=$PYTHON
    return
  fi
  for python in python3.12 python3.11 python3.13 python3 python; do
    if new_enough "$python"; then return; fi
  done
  fail "no Python 3.11 or newer found (python3 is version $(version_of python3 || echo unknown)); install one, or set PYTHON=/path/to/python"
}

make_environment() {
  if [ -e "$env_dir" ] && [ ! -f "$marker" ]; then
    fail "$env_dir exists but was not made by these scripts, so it is left alone; move it away and try again"
  fi
  if [ -f "$marker" ]; then
    # An environment does not survive a moved checkout or a removed Python.
    if [ "$(cat "$marker")" = "$root" ] && new_enough "$env_dir/bin/python"; then
      if [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$(version_of "$env_dir/bin/python")" ]; then return; fi
    fi
    echo "making $env_dir anew (the checkout was moved, or Python has changed)"
    rm -rf "$env_dir"
  fi
  find_python
  echo "making a virtual environment in $env_dir with $("$python" --version)"
  mkdir "$env_dir"
  echo "$root" >"$marker"
  if ! "$python" -m venv "$env_dir"; then
    rm -rf "$env_dir"
    fail "$python cannot make virtual environments (on Debian and Ubuntu: install python3-venv)"
  fi
}

fingerprint() { # what an installation depends on
  { cat "$root/pyproject.toml" "$root/setup.py" && "$env_dir/bin/python" --version && echo "${INVSOLVE_TORCH_INDEX:-}"; } | cksum
}

floors() { # the lowest version that pyproject.toml allows of each package, as constraints of pip
  "$env_dir/bin/python" "$root/scripts/_floors.py" "$root/pyproject.toml"
}

install() { # install base|test|oldest
  local now stamp
  now=$(fingerprint)
  for stamp in "$1" $([ "$1" = oldest ] || echo test); do
    if [ "$(cat "$env_dir/.installed-$stamp" 2>/dev/null)" = "$now" ]; then return; fi
  done
  echo "installing invsolve and what it needs (the first time torch is downloaded, which takes minutes)"
  local pip=("$env_dir/bin/python" -m pip install)
  if [ "$1" = oldest ]; then
    floors >"$env_dir/floors.txt" || fail "pyproject.toml has a requirement without a lowest version; the line above says which"
    pip+=(-c "$env_dir/floors.txt")
  fi
  if [ -n "${INVSOLVE_TORCH_INDEX:-}" ]; then
    "${pip[@]}" --index-url "$INVSOLVE_TORCH_INDEX" torch torchvision || fail "torch could not be installed from $INVSOLVE_TORCH_INDEX"
  fi
  local what=$root
  if [ "$1" != base ]; then what="$root[test]"; fi
  "${pip[@]}" -e "$what" || fail "the installation failed; the lines above say why"
  echo "$now" >"$env_dir/.installed-$1"
}

prepare() { # prepare base|test|oldest
  make_environment
  install "$1"
  cd "$root" || exit 1
}
