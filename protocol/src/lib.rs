//! What the bytes mean: vhost-user messages and virtio layouts, for both ends.
