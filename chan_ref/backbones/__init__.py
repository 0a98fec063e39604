"""Networks from pictures to regions: one small protocol, and where such a network can come from.

A backbone is a torch module in evaluation mode and the preprocessing of its pixels (`base.Backbone`):

    pixels [B, 3, S, S] float32 -> regions [B, R, F]                                            a grid of G * G regions
                                -> regions [B, R, F], boxes [B, R, 4]                           R boxes
                                -> regions [B, R, F], boxes [B, R, 4], region_lengths [B]       up to R boxes

A box is left, top, width and height as fractions of the picture. A detector may return a dictionary of these names that
has `class_scores` [B, R, C], too: the probability of each class but the background, from 0 to 1. `chan features` stores
them; graphs and galleries do not have them.

base            `Backbone`, and the check of what it returns
names           what a backbone can be called
choose          `open_backbone`: a backbone by its name
weights         weights from a local file, from a library's hub, or random
timm_models     `timm:NAME`
torchvision_models   `torchvision:NAME`, classifiers and detectors
detector        the regions of a Faster R-CNN, with the sizes of all tensors fixed
suppression     non-maximum suppression as an operator that ONNX has
onnx_files      `onnx:FILE`
"""
