"""Google Cloud Pub/Sub: publishing, and what is to be known of topics before.

`limits` is pure. The other modules import Google's library, which takes half a second: they are imported only where
there is a `[pubsub]` section.
"""

import os

#: gRPC writes lines of its own to stderr, in between those of the log, for connections that end; errors are enough.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
