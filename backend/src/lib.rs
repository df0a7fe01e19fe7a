//! Software mediated devices served from userspace.
