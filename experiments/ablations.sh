#!/usr/bin/env bash
# What each part adds between modalities: trains one model per row, scores it on held-out batches, prints a table.
#
#     bash experiments/ablations.sh pbmc OUT                      # built-in blood cells, p3 -> p4
#     bash experiments/ablations.sh cortex OUT rna.h5ad atac.h5ad # SNARE-seq nuclei, batches 09B, 09C, 09H held out
#
# Further arguments go to every `scmbert pretrain` (such as --train.num-steps 200). Models that stand in OUT are not
# trained again. SCORED=FILES scores the cells of other files than it trains on (a sample of them: scores of 25,734 peaks
# take minutes per thousand cells), DIRECTIONS='atac>rna' these directions alone. What came out stands in
# experiments/README.md.
set -euo pipefail
which=${1:?pbmc or cortex}
out=${2:?a folder to write to}
shift 2
mkdir -p "$out"

case $which in
    pbmc)
        experiment=pbmc_translation
        data=example:pbmc_mosaic
        space=()
        cells=(--block-size 16)
        paired=(--only "technical_batch=p1_0,p2_0,p3_0")
        modalities=(rna protein)
        unpaired_batches=(--only p1_0 p2_0 p3_0)
        test=(--train-batches p3 --test-batches p4)
        ;;
    cortex)
        experiment=cortex_translation
        data=${1:?rna.h5ad}+${2:?atac.h5ad}
        shift 2
        space=(--assembly mm10)
        cells=(--min-genes 20 --assembly mm10)
        paired=(--exclude "technical_batch=09B,09C,09H")
        modalities=(rna atac)
        unpaired_batches=(--only 09A 09D 09E 09F 09G 09I 09J 09K 09L)
        test=(--test-batches 09B 09C 09H)
        ;;
    *)
        echo "$which: expected pbmc or cortex" >&2
        exit 2
        ;;
esac
extra=("$@")
scored=${SCORED:-$data}
read -ra directions <<< "${DIRECTIONS:+--directions $DIRECTIONS}"

show() { # prints a command as a user would type it, then runs it
    printf '$ %s\n' "$*"
    "$@"
}

corpus() { # NAME OPTIONS... FILE
    local name=$1
    shift
    [ -d "$out/$name" ] || show scmbert corpus build "$out/$name" "$@" "${cells[@]}" > "$out/$name.log"
}

corpus paired "$data" "${paired[@]}"
corpus unpaired "$data" "${paired[@]}" --unpaired
[ -f "$out/pseudo.h5mu" ] || show scmbert pseudo-pairs "$data" --modalities "${modalities[@]}" "${unpaired_batches[@]}" \
    "${space[@]}" -o "$out/pseudo.h5mu"
corpus pseudo "$out/pseudo.h5mu"

masked=--objectives.masked-modeling.weight
translation=--objectives.cross-modal-translation
contrastive=--objectives.contrastive-alignment
cycle=("$masked" 0.25 "$translation.weight" 0.75 "$translation.pair-weight" 0 "$translation.cycle-weight" 1)

row() { # NAME CORPUS FLAGS...
    local name=$1 corpus=$2 folder=$out/${1// /_}
    shift 2
    if [ ! -d "$folder/model" ]; then
        show scmbert pretrain "$experiment" --corpus "$out/$corpus" --run-dir "$folder/run" "$@" "${extra[@]}" \
            > "$folder.log"
        scmbert export "$folder/run" "$folder/model" >> "$folder.log"
    fi
    [ -s "$folder/translation.json" ] || scmbert evaluate translation --model "$folder/model" --data "$scored" \
        "${space[@]}" "${test[@]}" "${directions[@]}" --no-baselines --json > "$folder/translation.json"
    [ -s "$folder/matching.json" ] || scmbert evaluate matching --model "$folder/model" --data "$scored" \
        "${space[@]}" "${test[@]}" --num-seeds 1 --no-baselines --json > "$folder/matching.json"
    echo "$name" >> "$out/rows"
}

rm -f "$out/rows"
row "unpaired only" unpaired "${cycle[@]}" "$contrastive.weight" 0
row "unpaired + links" unpaired "${cycle[@]}" "$contrastive.weight" 0.25 "$contrastive.link-weight" 1
row "pseudo-pairs, no pairs" pseudo
row "pairs" paired "$contrastive.weight" 0
row "pairs + contrastive" paired
row "negatives from all batches" paired "$contrastive.negatives" all
row "multiway encoder" paired --model.encoder-sharing multiway
row "one encoder per modality" paired --model.encoder-sharing per_modality
row "no linear path" paired --model.no-linear-path

python3 - "$out" "${modalities[@]}" << 'PYTHON'
import json
import sys
from pathlib import Path

out, first, second = Path(sys.argv[1]), *sys.argv[2:]
atac = second == "atac"
columns = [
    (f"{first} -> {second}", metric, label)
    for metric, label in (
        [("auroc_per_peak", "AUROC per peak"), ("auroc_per_peak_same_depth", "same depth")]
        if atac
        else [("rmse", "RMSE"), ("pearson_per_feature", "r")]
    )
] + [(f"{second} -> {first}", "rmse", "RMSE"), (f"{second} -> {first}", "pearson_per_feature", "r")]
names = ["FOSCTTM", "recall@10", "accuracy (knn)"]
head = [f"{direction} {label}" for direction, _, label in columns] + ["FOSCTTM", "recall@10", "label transfer"]
print("| model | " + " | ".join(head) + " |\n|" + "---|" * (1 + len(head)))
for name in (out / "rows").read_text().splitlines():
    folder = out / name.replace(" ", "_")
    translated = json.loads((folder / "translation.json").read_text())["rows"]
    matched = json.loads((folder / "matching.json").read_text())["rows"]
    cells = []
    for direction, metric, _ in columns:
        found = [r["mean"] for r in translated if (r["direction"], r["metric"]) == (direction, metric)]
        cells.append(f"{found[0]:.4f}" if found else "")
    for metric in names:
        found = [r["mean"] for r in matched if r["metric"] == metric and r["method"] == "model"]
        cells.append(f"{found[0]:.4f}" if found else "")
    print(f"| {name} | " + " | ".join(cells) + " |")
PYTHON
