"""gRPC, over the registry."""

import os

# Before grpcio is loaded. A process that replaces another one forks; grpcio would stop its threads for that, in the one
# that serves. And what it logs is for its own developers.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
