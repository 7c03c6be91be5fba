#!/usr/bin/env bash
# The whole way on the built-in blood cells: check, build, pre-train, kill, continue, export, embed, annotate,
# evaluate.
# `make demo` runs it; everything it writes is in demo_run/.
set -euo pipefail
cd "$(dirname "$0")/.."
# What .venv has after `make test` includes a compiler for TPUs, which would look for some here.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
out=demo_run
rm -rf "$out"
mkdir "$out"

show() { # prints a command as a user would type it, then runs it
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@"
}

show scmbert doctor example:pbmc_mosaic
show scmbert corpus build "$out/corpus" example:pbmc_mosaic --block-size 16
show scmbert corpus verify "$out/corpus"

pretrain=(scmbert pretrain pbmc_demo --corpus "$out/corpus" --run-dir "$out/run")
printf '\n\033[1m$ %s &   # to be killed after its first checkpoint\033[0m\n' "${pretrain[*]}"
"${pretrain[@]}" &
pid=$!
while [ ! -d "$out/run/checkpoints/100" ]; do
    kill -0 "$pid" 2> /dev/null || { wait "$pid"; exit 1; } # it ended by itself: show how
    sleep 0.5
done
printf '\033[1m$ kill -9 %s\033[0m\n' "$pid"
kill -9 "$pid"
wait "$pid" 2> /dev/null || true

show "${pretrain[@]}"
show scmbert export "$out/run" "$out/model"
show scmbert embed "$out/model" example:pbmc_mosaic -o "$out/embedded.h5mu"
# Its 500 genes are 13% of what the annotator reads: without the flag it says nothing of them.
show scmbert annotate predict example:blood_types example:pbmc_mosaic -o "$out/annotated.h5mu" --allow-low-coverage
show scmbert evaluate probe --model "$out/model" --run-dir "$out/run" --report "$out/report.html"

# What to do next, with a name that stands for the reader's own file.
printf '\nThe report: %s/report.html. Your own cells (raw counts, a column of cell types to be scored by), in three lines:\n\n' "$out"
printf '    scmbert corpus build my_corpus cells.h5ad\n'
printf '    scmbert pretrain rna --corpus my_corpus --run-dir my_run && scmbert export my_run my_model\n'
printf '    scmbert evaluate probe --model my_model --data cells.h5ad --obs-field cell_type=COLUMN --report my_report.html\n'
