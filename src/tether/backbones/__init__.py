"""Pretrained 3D models, one file a family: structures in, features and potential out."""
