#!/usr/bin/env bash
# The main job on real data: adapt SO3LR to the HOMO-LUMO gap of QM9, and show ID against OOD.
# DEMO_BACKBONE=tether-s takes the small backbone inside the package instead, in half the time
# and with six sevenths of the steps.
# A stage whose result is there is skipped, and a killed comparison continues: run it again at will.
set -euo pipefail
backbone=${DEMO_BACKBONE:-so3lr}
steps=1750
[ "$backbone" = so3lr ] || steps=1500
out=${DEMO_FOLDER:-demo${DEMO_BACKBONE:+-$DEMO_BACKBONE}}
run() { printf '\n\033[1m$ tether %s\033[0m\n' "$*"; tether "$@"; }

mkdir -p "$out"
# Small matrices: two processes of one thread each beat one process of two threads.
export OMP_NUM_THREADS=1

[ -e "$out/qm9.arrow" ] || run prepare qm9 --target gap --out "$out/qm9.arrow"
[ -e "$out/split.json" ] || run split "$out/qm9.arrow" --method boom --target gap \
    --val-size 1000 --train-size 2000 --out "$out/split.json"
[ -e "$out/auxiliary.arrow" ] || run label "$out/qm9.arrow" --with pseudo --backbone "$backbone" \
    --split "$out/split.json" --set train --n-per-structure 3 --out "$out/auxiliary.arrow"
[ -e "$out/heldout.arrow" ] || run label "$out/qm9.arrow" --with pseudo --backbone "$backbone" \
    --split "$out/split.json" --set val --n-per-structure 3 --limit 50 --out "$out/heldout.arrow"
run compare --config examples/demo.yaml --out "$out" \
    store="$out/qm9.arrow" split="$out/split.json" backbone.name="$backbone" \
    auxiliary="$out/auxiliary.arrow" forcefield_test="$out/heldout.arrow" \
    training.property_steps="$steps"
