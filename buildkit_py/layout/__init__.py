"""OCI layouts on disk: a directory, or a tar archive of one, with ``oci-layout``, ``index.json`` and ``blobs/``.

Nothing here knows an event loop: all of it blocks on the disk, except what is said not to. Memory stays bounded
by the chunks that are passed in and by the limits of manifests and configs. Source: OCI image-spec v1.1,
image-layout.md.
"""
