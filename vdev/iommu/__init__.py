"""The virtio-iommu unit: request bytes in, reply bytes, translations and events out. Pure; start at engine.py.

Choices where the specification is silent or says MAY ("D" numbers: the project's checklist of its clauses):

    situation                                            answer
    ---------------------------------------------------  --------------------------------------------------------------
    writable part cannot hold a tail (< 4 bytes)         chain returned unwritten, both modes
    readable part too short for its type                 compat INVAL, strict unwritten; PROBE's tail at its usual place
    either part longer than needed                       accepted; the reply starts at offset 0 of the writable part
    PROBE, writable part < probe_size + 4 (D51)          zeros, then INVAL in the last four bytes, both modes
    unknown type, compat                                 UNSUPP at offset 0, used length 4; PROBE not offered likewise
    ATTACH/MAP flag whose feature is not negotiated      INVAL, as any unknown flag bit (D17, D32)
    order of ATTACH's checks                             reserved, flags, endpoint, domain range, then for a new domain
                                                         the cap, for a living one its BYPASS flag and the regions
    ATTACH, domain outside domain_range                  RANGE
    ATTACH to the domain it is in, same BYPASS flag      OK, nothing changes; other flag: INVAL (D20)
    ATTACH to a domain with mappings where the endpoint
      has reserved regions (D22)                         UNSUPP
    ATTACH when max_domains exist                        NOMEM (the domain a mover leaves empty does not count)
    DETACH from a domain it is not in (D27)              INVAL; but an endpoint in a bypass domain may name domain 0
    order of MAP's checks                                flags, domain, bypass, range, regions, overlap, caps
    MAP or UNMAP, virt_end < virt_start                  RANGE; equal is one byte, legal where the granule is 1
    MAP outside input_range, or phys end over 64 bits    RANGE, whether or not INPUT_RANGE was accepted
    MAP over a region reserved for any endpoint of the
      domain (D38)                                       INVAL
    MAP without READ and WRITE                           OK; every access through it faults
    MAP to a guest-physical address without RAM          OK; checked at access
    MAP over a cap                                       NOMEM (INVAL if it overlaps a mapping as well)
    UNMAP with reserved bytes set (D39)                  INVAL, nothing removed
    UNMAP ends off the granule or outside input_range    fine, as long as no mapping is split
    UNMAP, DETACH, ATTACH with accesses in flight        done at once, answered once those are over (in_flight.py);
                                                         requests behind them are answered meanwhile
    MAP, UNMAP without MAP_UNMAP accepted                served: the device offers it
    access to a RESERVED region, or a read of an MSI
      region, bypassing or not                           MAPPING fault
    write to the MSI region                              passes untranslated, unless unattached without bypass (DOMAIN)
    bypassing access outside input_range                 identity: the range limits what can be mapped; with
                                                         force_aperture a MAPPING fault
    write of `bypass` other than 0 or 1 (D8)             ignored
"""
