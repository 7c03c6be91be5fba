#!/usr/bin/env bash
# A pre-training run on GPUs of a Slurm cluster: submitted once, looked at, cancelled.
set -euo pipefail
# shellcheck source=flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

summary 'A pre-training run on GPUs by Slurm. What follows -- are arguments of scmbert pretrain.

  slurm.sh submit --name run1 --nodes 4 --gpus-per-node 8 --time 24:00:00 \
      -- base_110m --corpus /shared/corpus --run-dir /shared/run1'
verb submit 'submit it, if no job of that name is queued or running'
verb status 'show it'
verb cancel 'cancel it, if it is queued or running (it saves first)'
flag name '' 'name of the job'
flag nodes 1 'number of nodes'
flag gpus-per-node 8 'GPUs of a node; there is one process for each, as JAX likes it'
flag cpus-per-gpu 8 'CPU cores of a process'
flag time '' 'time limit, as Slurm takes it; before it the run saves and starts again'
flag partition '' 'partition'
flag account '' 'account'
flag venv "$HOME/scmbert-venv" 'virtual environment with scmbert (setup_host.sh), seen by all nodes'
flag log scmbert-%x-%j.log 'output file'
flag max-restarts 100 'how often a run that lost a node or reached its time limit starts again'
read_flags "$@"
need name
need_number nodes gpus-per-node cpus-per-gpu max-restarts
job=(--me --name="${flags[name]}")

look=(squeue "${job[@]}" --noheader --format=%i)
queued_jobs() { # their ids, into $found
    found=$("${look[@]}") || die "failed with exit code $?: $(quoted "${look[@]}")"
    found=${found//$'\n'/ }
}

submit() {
    # No --gpus-per-task: each process must see all GPUs of its node, of which JAX takes the one of SLURM_LOCALID.
    local command=(sbatch --job-name="${flags[name]}" --nodes="${flags[nodes]}"
        --ntasks-per-node="${flags[gpus-per-node]}" --gpus-per-node="${flags[gpus-per-node]}"
        --cpus-per-task="${flags[cpus-per-gpu]}" --output="${flags[log]}")
    [ -z "${flags[time]}" ] || command+=(--time="${flags[time]}")
    [ -z "${flags[partition]}" ] || command+=(--partition="${flags[partition]}")
    [ -z "${flags[account]}" ] || command+=(--account="${flags[account]}")
    run "${command[@]}" "$(dirname "${BASH_SOURCE[0]}")/pretrain.sbatch" "${flags[venv]}" "${flags[max-restarts]}" "${words[@]}"
}

case $chosen_verb in
    submit)
        [ "${#words[@]}" -gt 0 ] || refuse 'arguments of scmbert pretrain are missing: -- EXPERIMENT --corpus ... --run-dir ...'
        if $dry_run; then
            quoted "${look[@]}"
            echo '# if it prints nothing:'
            submit
            exit
        fi
        queued_jobs
        if [ -n "$found" ]; then say "${flags[name]} is queued or running already (job $found); not submitted again"
        else submit; fi
        ;;
    status) run squeue "${job[@]}" --long ;;
    cancel) run scancel "${job[@]}" ;;
esac
