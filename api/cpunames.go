package api

// The names below are those of the CPU map of libvirt 11.3, the library in the launcher image. A named model also exists
// in numbered forms: Haswell-v4. Which of them a node can give is a fact of the node, not of this list.

// cpuModels are the named CPU models of amd64, then those of arm64.
const cpuModels = `
486 Broadwell Broadwell-IBRS Broadwell-noTSX Broadwell-noTSX-IBRS Cascadelake-Server Cascadelake-Server-noTSX Conroe
Cooperlake Denverton Dhyana EPYC EPYC-Genoa EPYC-IBPB EPYC-Milan EPYC-Rome GraniteRapids Haswell Haswell-IBRS
Haswell-noTSX Haswell-noTSX-IBRS Icelake-Client Icelake-Client-noTSX Icelake-Server Icelake-Server-noTSX IvyBridge
IvyBridge-IBRS KnightsMill Nehalem Nehalem-IBRS Opteron_G1 Opteron_G2 Opteron_G3 Opteron_G4 Opteron_G5 Penryn
SandyBridge SandyBridge-IBRS SapphireRapids SierraForest Skylake-Client Skylake-Client-IBRS Skylake-Client-noTSX-IBRS
Skylake-Server Skylake-Server-IBRS Skylake-Server-noTSX-IBRS Snowridge Westmere Westmere-IBRS athlon core2duo coreduo
cpu64-rhel5 cpu64-rhel6 kvm32 kvm64 n270 pentium pentium2 pentium3 pentiumpro phenom qemu32 qemu64
Ampere-1 Ampere-1a FT-2000+ Falkor Kunpeng-920 Neoverse-N1 Neoverse-N2 Neoverse-V1 Tengyun-S2500 a64fx
cortex-a53 cortex-a57 cortex-a72
`

// cpuFeatures are the CPU features of amd64, then those of arm64.
const cpuFeatures = `
3dnow 3dnowext 3dnowprefetch abm acpi adx aes amd-no-ssb amd-psfd amd-ssbd amd-stibp amx-bf16 amx-complex amx-fp16
amx-int8 amx-tile apic arat arch-capabilities arch-lbr auto-ibrs avic avx avx-ifma avx-ne-convert avx-vnni
avx-vnni-int16 avx-vnni-int8 avx10 avx10-128 avx10-256 avx10-512 avx2 avx512-4fmaps avx512-4vnniw avx512-bf16
avx512-fp16 avx512-vp2intersect avx512-vpopcntdq avx512bitalg avx512bw avx512cd avx512dq avx512er avx512f avx512ifma
avx512pf avx512vbmi avx512vbmi2 avx512vl avx512vnni bhi-ctrl bmi1 bmi2 bus-lock-detect cid cldemote clflush clflushopt
clwb clzero cmov cmp_legacy cmpccxadd cmt core-capability cr8legacy cvt16 cx16 cx8 dca ddpd-u de decodeassists ds
ds_cpl dtes64 eraps erms est extapic f16c fb-clear fbsdp-no fdp-excptn-only flush-l1d flushbyasid fma fma4 fpu fred
fsgsbase fsrc fsrm fsrs fxsr fxsr_opt fzrm gds-no gfni hle ht hypervisor ia64 ibpb ibpb-brtype ibrs ibrs-all ibs
intel-psfd intel-pt intel-pt-lip invpcid invtsc ipred-ctrl la57 lahf_lm lam lbrv lfence-always-serializing lkgs lm lwp
mbm_local mbm_total mca mcdt-no mce md-clear mds-no misalignsse mmx mmxext monitor movbe movdir64b movdiri mpx msr
mtrr no-nested-data-bp nodeid_msr npt nrip-save null-sel-clr-base nx ospke osvw osxsave overflow-recov pae pat
pause-filter pbe pbrsb-no pcid pclmuldq pcommit pconfig pdcm pdpe1gb perfctr_core perfctr_nb perfmon-v2 pfthreshold
pge pks pku pn pni popcnt prefetchiti pschange-mc-no psdp-no pse pse36 rdctl-no rdpid rdrand rdseed rdtscp rfds-clear
rfds-no rrsba-ctrl rsba rtm sbdr-ssdp-no sbpb sep serialize sgx sgx-aex-notify sgx-debug sgx-edeccssa sgx-exinfo
sgx-kss sgx-mode64 sgx-provisionkey sgx-tokenkey sgx1 sgx2 sgxlc sha-ni sha512 skinit skip-l1dfl-vmentry sm3 sm4 smap
smep smx spec-ctrl split-lock-detect srso-no srso-user-kernel-no ss ssb-no ssbd sse sse2 sse4.1 sse4.2 sse4a ssse3
stibp stibp-always-on succor svm svm-lock svme-addr-chk syscall taa-no tbm tce tm tm2 topoext tsc tsc-deadline
tsc-scale tsc_adjust tsx-ctrl tsx-ldtrk umip v-vmsave-vmload vaes vgif virt-ssbd vmcb-clean vme vmx vmx-activity-hlt
vmx-activity-shutdown vmx-activity-wait-sipi vmx-any-errcode vmx-apicv-register vmx-apicv-vid vmx-apicv-x2apic
vmx-apicv-xapic vmx-cr3-load-noexit vmx-cr3-store-noexit vmx-cr8-load-exit vmx-cr8-store-exit vmx-desc-exit
vmx-enable-user-wait-pause vmx-encls-exit vmx-entry-ia32e-mode vmx-entry-load-bndcfgs vmx-entry-load-efer
vmx-entry-load-fred vmx-entry-load-pat vmx-entry-load-perf-global-ctrl vmx-entry-load-pkrs vmx-entry-load-rtit-ctl
vmx-entry-noload-debugctl vmx-ept vmx-ept-1gb vmx-ept-2mb vmx-ept-advanced-exitinfo vmx-ept-execonly vmx-ept-uc
vmx-ept-wb vmx-eptad vmx-eptp-switching vmx-exit-ack-intr vmx-exit-clear-bndcfgs vmx-exit-clear-rtit-ctl
vmx-exit-load-efer vmx-exit-load-pat vmx-exit-load-perf-global-ctrl vmx-exit-load-pkrs vmx-exit-nosave-debugctl
vmx-exit-save-efer vmx-exit-save-pat vmx-exit-save-preemption-timer vmx-exit-secondary-ctls vmx-flexpriority
vmx-hlt-exit vmx-ins-outs vmx-intr-exit vmx-invept vmx-invept-all-context vmx-invept-single-context vmx-invlpg-exit
vmx-invpcid-exit vmx-invvpid vmx-invvpid-all-context vmx-invvpid-single-addr vmx-invvpid-single-context
vmx-invvpid-single-context-noglobals vmx-io-bitmap vmx-io-exit vmx-monitor-exit vmx-movdr-exit vmx-msr-bitmap vmx-mtf
vmx-mwait-exit vmx-nested-exception vmx-nmi-exit vmx-page-walk-4 vmx-page-walk-5 vmx-pause-exit vmx-ple vmx-pml
vmx-posted-intr vmx-preemption-timer vmx-rdpmc-exit vmx-rdrand-exit vmx-rdseed-exit vmx-rdtsc-exit vmx-rdtscp-exit
vmx-secondary-ctls vmx-shadow-vmcs vmx-store-lma vmx-true-ctls vmx-tsc-offset vmx-tsc-scaling vmx-unrestricted-guest
vmx-vintr-pending vmx-vmfunc vmx-vmwrite-vmexit-fields vmx-vnmi vmx-vnmi-pending vmx-vpid vmx-wbinvd-exit vmx-xsaves
vmx-zero-len-inject vnmi vpclmulqdq waitpkg wbnoinvd wdt wrmsrns x2apic xfd xgetbv1 xop xsave xsavec xsaveerptr
xsaveopt xsaves xtpr zero-fcs-fds
pauth sve sve1024 sve1152 sve128 sve1280 sve1408 sve1536 sve1664 sve1792 sve1920 sve2048 sve256 sve384 sve512 sve640
sve768 sve896
`

// obsoleteModels are kept out unless cpu.obsolete-models of podvirt-config takes them off, each with its numbered forms
// (scheduling.md 2.5).
const obsoleteModels = `
486 Conroe athlon core2duo coreduo kvm32 kvm64 n270 pentium pentium2 pentium3 pentiumpro phenom qemu32 qemu64
`
