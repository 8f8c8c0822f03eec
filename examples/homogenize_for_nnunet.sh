#!/bin/sh
# nnU-Net v2 on a dataset in one pose and size, its answers back on each scan's own grid, and their scores.
#
#     sh examples/homogenize_for_nnunet.sh DATASET WORK
#
# DATASET is an nnU-Net raw dataset with labeled test cases (imagesTs, labelsTs), WORK a folder for everything. Needs
# isopose and nnU-Net (pip install nnunetv2) in one environment. CONFIGURATION is 2d or 3d_fullres, FOLD 0 to 4 or
# all, TRAINER one of nnU-Net's, DEVICE cuda, cpu or mps, SIZE the pixels along a side of the reference's frame.
set -eu
dataset=$1 work=$2
: "${CONFIGURATION:=2d}" "${FOLD:=0}" "${TRAINER:=nnUNetTrainer}" "${DEVICE:=cuda}" "${PROCESSES:=2}" "${SIZE:=384}"

mkdir -p "$work"
work=$(cd "$work" && pwd)
export nnUNet_raw="$work/raw" nnUNet_preprocessed="$work/preprocessed" nnUNet_results="$work/results"
upright="$nnUNet_raw/Dataset501_Upright"

isopose homogenize "$dataset" "$upright" --size "$SIZE" --workers "$PROCESSES"
nnUNetv2_plan_and_preprocess -d 501 -c "$CONFIGURATION" -np "$PROCESSES" -npfp "$PROCESSES" \
    --verify_dataset_integrity
nnUNetv2_train 501 "$CONFIGURATION" "$FOLD" -tr "$TRAINER" -device "$DEVICE"
nnUNetv2_predict -i "$upright/imagesTs" -o "$work/predicted" -d 501 -c "$CONFIGURATION" -f "$FOLD" \
    -tr "$TRAINER" -device "$DEVICE" -npp 1 -nps 1
isopose restore "$work/predicted" --homogenized "$upright" --output "$work/restored"
isopose evaluate "$work/restored" "$dataset/labelsTs" --output "$work/scores"
