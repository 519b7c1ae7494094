#!/bin/bash
# After all shards of label_slurm_array.sh: summary.json, failures.csv, and files of the whole job
# such as coco.json. It refuses, and names the units, where a shard is not through.
#SBATCH --job-name=wsss-merge
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=01:00:00
#SBATCH --output=merge-%j.log

set -u
status=0
wsss label --out /data/labels --merge || status=$?
[ "$status" -eq 3 ] && status=0
exit "$status"
