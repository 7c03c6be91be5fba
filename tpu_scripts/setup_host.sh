#!/usr/bin/env bash
# Makes scmbert usable on a host: a virtual environment with the package and the JAX of its accelerator.
set -euo pipefail
# shellcheck source=flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

summary 'Installs scmbert with the JAX of an accelerator into a virtual environment. A second time it does nothing,
unless what it was asked to install has changed.

  setup_host.sh --accelerator tpu
  setup_host.sh --accelerator cuda13 --venv /opt/scmbert'
flag accelerator '' 'tpu, cuda13 or cpu'
flag venv "$HOME/scmbert-venv" 'folder of the virtual environment'
flag package "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)" 'a checkout (installed in place, with its constraints.txt) or a wheel'
flag python python3 'Python 3.11 to 3.13'
read_flags "$@"
need accelerator venv package python

declare -A extra=([tpu]='[tpu]' [cuda13]='[cuda13]' [cpu]='')
accelerator=${flags[accelerator]} venv=${flags[venv]} package=${flags[package]}
[[ -v extra[$accelerator] ]] || refuse "--accelerator $accelerator: expected tpu, cuda13 or cpu"
install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
if [ -d "$package" ]; then
    [ -f "$package/setup.py" ] || refuse "--package $package: a folder without setup.py"
    decides=("$package/setup.py" "$package/constraints.txt")
    install+=(-c "$package/constraints.txt" -e "$package${extra[$accelerator]}")
elif [ -f "$package" ]; then
    decides=("$package")
    install+=("$package${extra[$accelerator]}")
else
    refuse "--package $package: there is no such folder or file"
fi

"${flags[python]}" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    || die "--python ${flags[python]}: Python 3.11 to 3.13 is needed"
# Everything that decides what is installed; written last, so that an installation that was cut off is done again.
wanted=$(printf '%s\n' "$accelerator" "$package" && "${flags[python]}" --version && cat "${decides[@]}" | sha256sum)
if [ -f "$venv/.installed" ] && [ "$(cat "$venv/.installed")" = "$wanted" ]; then
    say "$venv is up to date"
    exit
fi
run "${flags[python]}" -m venv "$venv"
run "${install[@]}"
run "$venv/bin/scmbert" --version
$dry_run || printf '%s\n' "$wanted" > "$venv/.installed"
