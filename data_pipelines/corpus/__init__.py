"""The folder of blocks, here or far away: where are the bytes?"""
