; The probe guest: what a node must be able to run before podvirt says that it runs VMs. A hypervisor that only emulates
; its way through real mode, or only runs kernels made for it, fails here as it fails with an ordinary kernel. Each
; stage says one letter at port 0xe9 (isa-debugcon): R real mode, P protected mode, L long mode with paging, S an SSE2
; instruction that KVM's emulator does not know (linux: arch/x86/kvm/emulate.c), C CPUID, I interrupts set up, T five timer
; interrupts woke the CPU from HLT. Then it ends QEMU at port 0xf4 (isa-debug-exit).
;
; It is a firmware image: the first bytes of the 64 KiB below 1 MiB and 4 GiB. probe.go adds the reset vector.
; Assemble: nasm -f bin -o probe.bin probe.asm

bits 16
org 0

base equ 0xF0000                ; where the image lies below 1 MiB
stack equ 0x7000
idt equ 0x8000
pml4 equ 0x10000                ; page tables: PML4, PDPT, first GiB, fourth GiB
apic equ 0xFEE00000             ; local APIC

%macro say 1
    mov al, %1
    out 0xe9, al
%endmacro

start:
    cli
    say 'R'
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, stack
    o32 lgdt [cs:gdtr]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    jmp dword 0x08:(base + protected)

bits 32
protected:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, stack
    say 'P'
    mov edi, pml4
    xor eax, eax
    mov ecx, 0x4000/4
    cld
    rep stosd
    mov dword [pml4], pml4 + 0x1003
    mov dword [pml4 + 0x1000], pml4 + 0x2003
    mov dword [pml4 + 0x1018], pml4 + 0x3003
    mov dword [pml4 + 0x2000], 0x83                 ; the first 2 MiB
    mov dword [pml4 + 0x3fb8], apic | 0x9b          ; the 2 MiB page of the APIC, uncached
    mov eax, pml4
    mov cr3, eax
    mov eax, cr4
    or eax, 0x220                                   ; PAE, OSFXSR
    mov cr4, eax
    mov ecx, 0xC0000080                             ; EFER
    rdmsr
    or eax, 0x100                                   ; LME
    wrmsr
    mov eax, cr0
    or eax, 0x80000000                              ; PG
    mov cr0, eax
    jmp 0x18:(base + lmode)

bits 64
default abs
lmode:
    mov rsp, stack
    say 'L'
    paddd xmm0, xmm0
    say 'S'
    xor eax, eax
    cpuid
    mov eax, 1
    cpuid
    rdtsc
    say 'C'
    mov rdi, idt + 0x20*16                          ; IRQ 0 becomes vector 0x20
    mov rax, base + timer
    mov [rdi], ax
    mov word [rdi + 2], 0x18
    mov word [rdi + 4], 0x8E00
    shr rax, 16
    mov [rdi + 6], ax
    mov dword [rdi + 8], 0
    mov dword [rdi + 12], 0
    lidt [base + idtr]
    mov esi, apic
    mov dword [rsi + 0xF0], 0x1FF                   ; APIC on
    mov dword [rsi + 0x350], 0x700                  ; LINT0: interrupts of the PIC
    mov al, 0x11
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xfe                                    ; all masked but IRQ 0
    out 0x21, al
    mov al, 0x34                                    ; PIT channel 0, mode 2, 100 Hz
    out 0x43, al
    mov al, 0x9c
    out 0x40, al
    mov al, 0x2e
    out 0x40, al
    say 'I'
    xor ebx, ebx
    sti
.wait:
    hlt
    cmp ebx, 5
    jb .wait
    say 'T'
    mov al, 0x10
    out 0xf4, al
.dead:
    cli
    hlt
    jmp .dead

timer:
    push rax
    inc ebx
    mov al, 0x20
    out 0x20, al
    pop rax
    iretq

; The image is read-only memory: descriptors are accessed already, so that the CPU needs not write that it did, which
; where nested pages protect them ends in an emulator that tries for ever.
align 8
gdt:
    dq 0
    dq 0x00CF9B000000FFFF                           ; 0x08 code, 32 bit
    dq 0x00CF93000000FFFF                           ; 0x10 data
    dq 0x00AF9B000000FFFF                           ; 0x18 code, 64 bit
gdtr:
    dw 31
    dd base + gdt
idtr:
    dw 0x20f
    dq idt
