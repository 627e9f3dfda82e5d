"""Tasks as data: where the images come from, how they are kept, and how batches are drawn.

`sources` finds or fetches a data set, `cache` keeps what was parsed, `embedded` holds the digits
that need no network, `batches` draws from memory, `module` makes a LightningDataModule of it all.
Nothing is imported here: torchvision and Lightning take seconds, and to read files needs neither.
"""
