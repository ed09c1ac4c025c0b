"""Annotation tables, data set, samplers, augmentation and DataModule; readers and writers of annotation formats."""
