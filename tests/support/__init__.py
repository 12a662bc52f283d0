"""What the tests share: certificates, mounts, stunnel, XAPI, comparisons."""
