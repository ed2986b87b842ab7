"""How an RGB image in [0, 1] is prepared for a network: x -> (x - mean) / std."""

from __future__ import annotations

NORMS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # To [-1, 1]: Google's vision transformers and Inception.
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # OpenAI's CLIP.
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    # Oxford's own VGG files: RGB 0..255 minus the mean colour (123.68, 116.779, 103.939).
    "caffe": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255)),
    # TensorFlow's EfficientNet-Lite: (RGB 0..255 - 127) / 128.
    "lite": ((127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)),
}
