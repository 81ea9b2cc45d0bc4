#!/usr/bin/env bash
# Test what is promised about other libraries: each combination in an empty environment, with the built wheel.
set -euo pipefail
cd "$(dirname "$0")/.."

# name                  Python  installed along with the wheel
combinations="
autogluon-1.2           3.11    autogluon.tabular==1.2
autogluon-1.4.0         3.11    autogluon.tabular==1.4.0
autogluon-1.5.0         3.11    autogluon.tabular==1.5.0
autogluon-1.6.3         3.11    autogluon.tabular==1.6.3
autogluon-1.4.0-py3.12  3.12    autogluon.tabular==1.4.0
autogluon-1.5.0-py3.13  3.13    autogluon.tabular==1.5.0
python-3.12             3.12    -r requirements.lock
python-3.13             3.13    -r requirements.lock
ado-1.8.0               3.11    ado-core==1.8.0
ado-2.3.0               3.11    ado-core==2.3.0
wheel                   3.11
"
drift=autogluon-1.5.0  # the one that CI runs
tests="tests/predictor/test_drift.py tests/predictor/test_released.py"
ado_tests="tests/experiments/test_ado_versions.py"  # a minute that the AutoGluons do without: their ado is the lock's

usage() {
  echo "usage: tests/matrix.sh all | drift | NAME..."
  echo "Runs the combinations of these names ('drift' is $drift):"
  grep . <<< "$combinations" | sed 's/^/  /'
}

# The first interpreter of a version that really starts (a shim may not): on PATH, or where pyenv keeps its own.
find_python() {
  local python
  for python in $(type -ap "python$1") "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    "$python" -c "import sys, ensurepip; sys.exit(sys.version_info[:2] != tuple(map(int, '$1'.split('.'))))" \
      2> /dev/null && echo "$python" && return
  done
  return 1
}

# Make the environment, then test in a copy of tests and examples: the wheel is all there is to import. The home folder
# is empty, and so is the cache. 'wheel' gets nothing that the wheel does not ask for, not even pytest.
run() {
  local name=$1 python=$2 bin=$scratch/$1/bin
  shift 2
  "$python" -m venv "$scratch/$name"
  [[ -d $scratch/wheel-file ]] ||
    "$bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$scratch/wheel-file" "$scratch/source"
  [[ $name == wheel ]] || set -- pytest "$@"
  "$bin/python" -m pip install --quiet "$scratch"/wheel-file/*.whl "$@"
  export HOME=$scratch/$name/home XDG_CACHE_HOME=$scratch/$name/home/.cache
  mkdir "$HOME"
  cd "$scratch/copy"
  "$bin/run_experiment" examples/simple.yaml | tee "$HOME/answer"
  for expected in "can_recommend +1" "gpus +2" "workers +1"; do
    grep -Eq "^$expected\$" "$HOME/answer"
  done
  if [[ $name == wheel ]]; then
    "$bin/python" examples/direct_call.py
    "$bin/python" examples/direct_calls.py
    "$bin/python" examples/through_ado.py
    "$bin/ado-autoconf" versions
    "$bin/ado-autoconf" stacks
  else
    [[ $name == autogluon-* ]] || tests+=" $ado_tests"
    "$bin/python" -m pytest -q --color=no -p no:cacheprovider --import-mode=importlib -o pythonpath=tests/helpers $tests
  fi
}

# Python, ado, AutoGluon, LightGBM, numpy and pandas of an environment, for the table.
versions() {
  "$scratch/$1/bin/python" -c '
import platform
from importlib.metadata import version
found = map(version, ("ado-core", "autogluon.tabular", "lightgbm", "numpy", "pandas"))
print(platform.python_version(), *found)' 2> /dev/null || echo "- - - - - -"
}

[[ $# -gt 0 && $1 != -h && $1 != --help ]] || { usage; exit 0; }
case $* in
  all) names=$(awk '{print $1}' <<< "$combinations") ;;
  drift) names=$drift ;;
  *) names=$* ;;
esac
for name in $names; do
  grep -q "^$name " <<< "$combinations" || { echo "no combination is named $name" >&2; usage >&2; exit 2; }
done

export RAY_ADDRESS=local PIP_DISABLE_PIP_VERSION_CHECK=1  # a Ray cluster that happens to run here is not ours to use
unset PYTHONPATH
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/source" "$scratch/copy"
cp -R autoconf compat pyproject.toml README.md LICENSE "$scratch/source"
cp -R tests examples sweep "$scratch/copy"

row="%-23s %-8s %-6s %-10s %-9s %-7s %-7s %-16s %8s\n"
table=$(printf "$row" combination Python ado AutoGluon lightgbm numpy pandas result seconds)
failed=0 tested=0
for name in $names; do
  read -r _ version pins < <(grep "^$name " <<< "$combinations")
  if ! python=$(find_python "$version"); then
    echo "$name: not run, there is no Python $version here"
    table+=$'\n'$(printf "$row" "$name" "$version" - - - - - "not run" -)
    continue
  fi
  echo "$name: installing and testing ..."
  tested=1
  SECONDS=0
  log=$scratch/$name.log
  run "$name" "$python" $pins > "$log" 2>&1 &  # not in an if, where a failing command would not end it
  if wait $!; then
    result="passed"
  else
    result="FAILED"
    failed=1
    cat "$log"
  fi
  counts=$(grep -Eo '[0-9]+ (passed|failed|error)' "$log" | tail -3 | paste -sd, - || true)
  table+=$'\n'$(printf "$row" "$name" $(versions "$name") "$result${counts:+ (${counts%% passed})}" "$SECONDS")
  rm -rf "${scratch:?}/$name"
done
echo "$table"
exit $((failed || ! tested))
