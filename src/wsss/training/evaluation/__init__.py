"""mIoU, average precision of instances, coverage of classes."""
