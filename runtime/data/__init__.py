"""Images with captions as data folders have them.

layout    names of the files of a data folder, and where each is found
regions   region features in every form that is read
images    `CaptionedImages`: some images with their captions
"""
