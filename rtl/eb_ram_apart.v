// Synchronous memory as eb_ram, for rows that are never read while they are written; Verilog-2005.
//
// r_data shows row r_addr one cycle after r_en and holds until the next r_en. What a read of the row that
// is being written returns is undefined (here the old row). The attribute says so to Yosys, which else
// puts a bypass between block RAM and whatever is behind it. No reset; rows are undefined until
// written; addresses must be below DEPTH.

module eb_ram_apart #(
    parameter WIDTH = 8,
    parameter DEPTH = 2,
    parameter ADDR_WIDTH = 1,
    parameter LANES = 1
) (
    input  wire                  clk,
    input  wire [LANES-1:0]      w_en,
    input  wire [ADDR_WIDTH-1:0] w_addr,
    input  wire [WIDTH-1:0]      w_data,
    input  wire                  r_en,
    input  wire [ADDR_WIDTH-1:0] r_addr,
    output wire [WIDTH-1:0]      r_data
);
    localparam LANE_WIDTH = WIDTH / LANES;

    (* no_rw_check *)
    reg [WIDTH-1:0] mem [0:DEPTH-1];
    reg [WIDTH-1:0] row_q;

    assign r_data = row_q;

    always @(posedge clk) begin
        if (r_en)
            row_q <= mem[r_addr];
    end

    generate
        if (LANES == 1) begin : whole
            always @(posedge clk) begin
                if (w_en[0])
                    mem[w_addr] <= w_data;
            end
        end else begin : lanes
            integer lane;
            always @(posedge clk) begin
                for (lane = 0; lane < LANES; lane = lane + 1)
                    if (w_en[lane])
                        mem[w_addr][lane*LANE_WIDTH +: LANE_WIDTH] <= w_data[lane*LANE_WIDTH +: LANE_WIDTH];
            end
        end
    endgenerate
endmodule
