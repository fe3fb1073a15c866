// Read-only memory behind an AXI4 read master, for benches: bursts in order of their addresses.
//
// The first beat of a burst comes LATENCY cycles after its address at the earliest. With PAUSES (0..255,
// of 256) addresses and beats wait at random; SEED decides which. Ends the simulation on a burst that
// breaks a rule of AXI4: not INCR, another size than the port's, across 4 KiB, an address that changes
// while it waits, bytes outside the image.

module eb_axi_memory #(
    parameter ADDR_BITS = 40,
    parameter DATA_BITS = 256,
    parameter LEN_BITS = 8,
    parameter WORDS = 1,
    parameter LATENCY = 10,
    parameter FILE = "image.hex"
) (
    input  wire                 aclk,
    input  wire                 aresetn,
    input  wire [7:0]           pauses,
    input  wire [31:0]          seed,
    input  wire [ADDR_BITS-1:0] araddr,
    input  wire [LEN_BITS-1:0]  arlen,
    input  wire [2:0]           arsize,
    input  wire [1:0]           arburst,
    input  wire                 arvalid,
    output wire                 arready,
    output wire [DATA_BITS-1:0] rdata,
    output wire [1:0]           rresp,
    output wire                 rlast,
    output wire                 rvalid,
    input  wire                 rready
);
    localparam BYTES = DATA_BITS / 8;
    localparam DEPTH = 256;  // bursts in flight

    reg [DATA_BITS-1:0] image [0:WORDS-1];
    initial $readmemh(FILE, image);

    // Bursts in flight, oldest at ``head``.
    reg [63:0] burst_word [0:DEPTH-1];
    reg [8:0]  burst_beats [0:DEPTH-1];
    reg [63:0] burst_due [0:DEPTH-1];
    integer head, tail;
    reg [8:0]  beat;
    reg [63:0] now;
    reg [31:0] random_q;
    reg        address_open, beat_open;
    reg        waiting;
    reg [ADDR_BITS-1:0] waiting_addr;

    function [31:0] next_random(input [31:0] x);
        reg [31:0] y;
        begin
            y = x ^ (x << 13);
            y = y ^ (y >> 17);
            next_random = y ^ (y << 5);
        end
    endfunction

    wire [63:0] word = burst_word[head % DEPTH] + beat;
    assign arready = aresetn && address_open && (tail - head) < DEPTH;
    assign rvalid = aresetn && beat_open && head != tail && burst_due[head % DEPTH] <= now;
    assign rdata = rvalid ? image[word] : {DATA_BITS{1'bx}};
    assign rlast = rvalid && beat + 1 == burst_beats[head % DEPTH];
    assign rresp = 2'b00;

    task fail(input [8*40-1:0] rule);
        begin
            $display("FAIL: m_axi: %0s, address %h, length %0d", rule, araddr, arlen);
            $fatal(1);
        end
    endtask

    always @(posedge aclk) begin
        if (!aresetn) begin
            head <= 0;
            tail <= 0;
            beat <= 0;
            now <= 0;
            waiting <= 0;
            random_q <= seed | 32'd1;
            address_open <= 1;
            beat_open <= 1;
        end else begin
            now <= now + 1;
            random_q <= next_random(random_q);
            // A beat that is offered stays offered.
            if (!rvalid || rready)
                beat_open <= random_q[7:0] >= pauses;
            address_open <= random_q[15:8] >= pauses;
            waiting <= arvalid && !arready;
            waiting_addr <= araddr;
            if (waiting && (!arvalid || araddr != waiting_addr))
                fail("an address was withdrawn");
            if (arvalid && arready) begin
                if (arburst != 2'b01)
                    fail("a burst is not INCR");
                if (BYTES != (1 << arsize))
                    fail("a burst is of another width");
                if ((araddr % BYTES) != 0)
                    fail("a burst is not aligned");
                if ((araddr % 4096) + (arlen + 1) * BYTES > 4096)
                    fail("a burst crosses 4 KiB");
                if (araddr / BYTES + arlen >= WORDS)
                    fail("a burst leaves the image");
                burst_word[tail % DEPTH] <= araddr / BYTES;
                burst_beats[tail % DEPTH] <= arlen + 1;
                burst_due[tail % DEPTH] <= now + LATENCY;
                tail <= tail + 1;
            end
            if (rvalid && rready) begin
                beat <= rlast ? 0 : beat + 1;
                if (rlast)
                    head <= head + 1;
            end
        end
    end
endmodule
