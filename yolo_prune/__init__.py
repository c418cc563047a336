"""Make YOLOv3 detectors small and fast: train, prune, finetune and bench on PyTorch.

cfg text ─► Network ─► Detector ─► train (λ·|γ|) ─► importance ─► Plan ─► rebuild ─► finetune ─► bench
              │                                        ▲           │
              └──────────► ChannelGraph ───────────────┴───────────┘
"""

__version__ = "0.1.0"
