"""By how much the scores of one model and one image may differ."""

# Relative above 1, absolute below: float32 convolutions differ by that between batch sizes.
SCORE_TOLERANCE = 1e-5
# By how much a score or a heatmap in reduced precision may differ from that in float32, as a share of the largest
# value of its kind.
# Measured on small models: MKD, SSM and Cycle-GAN stay within 0.5 %; FYD and PMAD, and MKD's gradient map, do not.
AMP_TOLERANCE = 0.02
