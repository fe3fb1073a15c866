// Read-only memory behind an AXI4 read master, for benches: bursts in order of their addresses.
//
// The first beat of a burst comes LATENCY cycles after its address at the earliest. With PAUSES (0..255,
// of 256) addresses and beats wait at random; SEED decides which. What is not valid is x. The image's first
// word lies at BASE. Ends the simulation on a burst that breaks a rule of AXI4: not INCR, another size than
// the port's, across 4 KiB, an address that changes while it waits, bytes outside the image.

module eb_axi_memory #(
    parameter ADDR_BITS = 40,
    parameter DATA_BITS = 256,
    parameter ID_BITS = 1,
    parameter WORDS = 1,
    parameter [ADDR_BITS-1:0] BASE = 0,
    parameter LATENCY = 10,
    parameter FILE = "image.hex"
) (
    input  wire                 aclk,
    input  wire                 aresetn,
    input  wire [7:0]           pauses,
    input  wire [31:0]          seed,
    input  wire [ID_BITS-1:0]   arid,
    input  wire [ADDR_BITS-1:0] araddr,
    input  wire [7:0]           arlen,
    input  wire [2:0]           arsize,
    input  wire [1:0]           arburst,
    input  wire                 arvalid,
    output wire                 arready,
    output wire [ID_BITS-1:0]   rid,
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
    reg [ID_BITS-1:0] burst_id [0:DEPTH-1];
    integer head, tail;
    reg [8:0]  beat;
    reg [63:0] now;
    wire       address_go, beat_go;
    reg        address_open, beat_open;
    reg        waiting;
    reg [ID_BITS+ADDR_BITS+12:0] waiting_burst;
    wire [ID_BITS+ADDR_BITS+12:0] burst = {arid, araddr, arlen, arsize, arburst};

    eb_pauses #(.CHANNELS(2)) random(
        .aclk(aclk), .aresetn(aresetn), .pauses(pauses), .seed(seed), .go({address_go, beat_go}));

    wire [63:0] word = burst_word[head % DEPTH] + beat;
    assign arready = aresetn && address_open && (tail - head) < DEPTH;
    assign rvalid = aresetn && beat_open && head != tail && burst_due[head % DEPTH] <= now;
    assign rdata = rvalid ? image[word] : {DATA_BITS{1'bx}};
    assign rlast = rvalid ? beat + 1 == burst_beats[head % DEPTH] : 1'bx;
    assign rid = rvalid ? burst_id[head % DEPTH] : {ID_BITS{1'bx}};
    assign rresp = rvalid ? 2'b00 : 2'bxx;

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
            address_open <= 1;
            beat_open <= 1;
        end else begin
            now <= now + 1;
            // A beat that is offered stays offered.
            if (!rvalid || rready)
                beat_open <= beat_go;
            address_open <= address_go;
            waiting <= arvalid && !arready;
            waiting_burst <= burst;
            if ((^arvalid) === 1'bx)
                fail("arvalid is unknown");
            if (waiting && (!arvalid || burst !== waiting_burst))
                fail("an address was withdrawn");
            if (arvalid && (^burst) === 1'bx)
                fail("a burst is unknown");
            if (arvalid && arready) begin
                if (arburst != 2'b01)
                    fail("a burst is not INCR");
                if (BYTES != (1 << arsize))
                    fail("a burst is of another width");
                if ((araddr % BYTES) != 0)
                    fail("a burst is not aligned");
                if ((araddr % 4096) + (arlen + 1) * BYTES > 4096)
                    fail("a burst crosses 4 KiB");
                if (araddr < BASE || (araddr - BASE) / BYTES + arlen >= WORDS)
                    fail("a burst leaves the image");
                burst_word[tail % DEPTH] <= (araddr - BASE) / BYTES;
                burst_id[tail % DEPTH] <= arid;
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
