"""What is online: gRPC servicers, micro-batcher and metrics around a Screen."""
