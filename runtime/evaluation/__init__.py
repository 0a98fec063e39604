"""How well a model retrieves: recalls and other metrics of a score matrix, and the scoring of a whole split.

metrics     recalls, median and mean ranks, rsum, folds
coco        CxC and ECCV Caption on the COCO 5K test
scoring     scores of every image with every caption on the CPU, words packed without padding
streaming   the scores of a split, block by block, so that its images need not fit in memory
ranking     the ranks of a split without its scores: bounds decide most pairs, in compiled code
"""
