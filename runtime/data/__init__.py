"""Images with captions as data folders have them.

layout     names of the files of a data folder, and where each is found
captions   captions and image ids in text files: which captions are of which image
karpathy   the same in Karpathy's JSON files
regions    region features in every form that is read: .npy, .npz, HDF5, .tsv, a file for each image
fitting    captions cut to what a text encoder takes
images     `CaptionedImages`: some images with their captions
"""
