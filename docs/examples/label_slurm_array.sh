#!/bin/bash
# A labelling job in 16 shards, at most 8 at a time; all nodes see the same disk.
#
#     job=$(sbatch --parsable label_slurm_array.sh)
#     sbatch --dependency=afterok:$job label_slurm_merge.sh
#
# A shard that was killed or timed out goes on where it was: submit the array again, and units that
# have their record are not done again. Exit code 3 means that some images failed (failures.csv
# lists them after the merge), which is no reason to hold the merge back.
#SBATCH --job-name=wsss-label
#SBATCH --array=0-15%8
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=label-%A-%a.log

set -u
status=0
# srun, so that SIGTERM before the time limit reaches wsss, which then finishes units under way.
srun wsss label /data/photos --model /data/bundle --out /data/labels \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
    --workers "$SLURM_CPUS_PER_TASK" || status=$?
[ "$status" -eq 3 ] && status=0
exit "$status"
