"""What is refitted after units are gone: last linears, whole layers, the last norm; and training."""
