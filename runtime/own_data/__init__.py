"""One's own pictures and captions become a data folder.

entries      what every source is read into: a picture's name, its captions, its split
tables       CSV, TSV and JSON lines
annotations  Karpathy's JSON files, and COCO's
sidecars     a folder of pictures with a text file beside each
sources      which of these a file or folder is
find         the file that a name in a source stands for
check        pictures that can be read, and which of them are the same
alike        pictures of one split that look like those of another
splits       train, dev and test: given, or made from the content of the pictures
gather       all of it in order: `gather` returns what goes into the data folder, and what was left out
report       counts, lengths, unknown words, leaks
write        the files of the data folder
"""
