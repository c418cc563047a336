"""Everything that only a GPU can settle, in stages that run one after the other; scripts/gpu starts it.

check ─► bench ─► throughput ─► case-study (─► controls)      each in a process of its own, with a time limit

A stage leaves OUT/STAGE.json, written anew after each figure, and OUT/STAGE.log; OUT/summary.md and OUT/summary.json hold
everything. With `--device cpu --tiny` all stages run on a CPU in minutes, with a small network on small images.
"""
